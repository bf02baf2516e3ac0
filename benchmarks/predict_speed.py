#!/usr/bin/env python3
"""
Images per second of ``maskx predict``, from files to pictures and COCO results, against a plain loop that
does the same, one after the other: read the image, call the model, encode the masks, draw them with
torchvision's ``draw_segmentation_masks``, and write the picture. The loop is over torchvision's Mask R-CNN
and, where Detectron2 is installed, over its ``DefaultPredictor``.

The models have random weights, the same in the loop and in ``maskx predict``, and find --objects objects in
each image. Images are generated. Each way runs in a process of its own, whose peak of memory is measured.
"""

import argparse
import json
import os
import resource
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from benchmark_tools import detects_everywhere, in_own_process, same_detector, tame
from PIL import Image
from tabulate import tabulate
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d
from torchvision.transforms.v2.functional import pil_to_tensor
from torchvision.utils import draw_segmentation_masks

from maskx_d2.backends.load import load_detector
from maskx_d2.backends.torchvision.training import TrainingModule
from maskx_d2.data.rle import encode
from maskx_d2.inference.predict import find_images, predict
from maskx_d2.runtime.configs import config_file

SIZES = {"12 megapixels": (4000, 3000), "640 x 480": (640, 480)}
NUM_CLASSES = 80
MIN_SCORE = 0.1


def generate(folder: Path, number: int, size: tuple[int, int]) -> None:
    """JPEG files with the frequencies of photographs: noise of several scales."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    width, height = size
    for index in range(number):
        picture = np.zeros((height, width, 3), np.float32)
        for scale in (1, 8, 64, 512):
            noise = generator.integers(0, 256, (height // scale + 2, width // scale + 2, 3), np.uint8)
            picture += np.asarray(Image.fromarray(noise).resize(size, Image.Resampling.BILINEAR))
        Image.fromarray((picture / 4).astype(np.uint8)).save(folder / f"{index + 1}.jpg", quality=90)


def write_models(folder: Path, args: argparse.Namespace) -> None:
    """The models of all ways, with the same weights."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    module = TrainingModule(
        class_names=[f"class {i}" for i in range(NUM_CLASSES)],
        category_ids=list(range(1, NUM_CLASSES + 1)),
        classes_with_masks=list(range(20)),
        depth=args.depth,
        norm="FrozenBN",
        mlp_layers=0,
        rpn_post_nms_top_n_test=args.proposals,
        box_detections_per_img=args.objects,
        min_size=args.min_size,
        max_size=args.min_size * 5 // 3,
    )
    tame(module)
    detects_everywhere(module.model.roi_heads.box_predictor.cls_score.bias, first=1)
    torch.save(
        {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}, folder / "maskx.ckpt"
    )
    if find_spec("detectron2") is not None:
        from detectron2.modeling import build_model

        from maskx_d2.backends.detectron2.config import load_config

        for name, config in (
            ("stock", "mask_rcnn_R_50_FPN_1x.yaml"),
            ("maskx", "maskx_R_50_FPN_1x.yaml"),
        ):
            overrides = [
                *("MODEL.RESNETS.DEPTH", args.depth, "MODEL.WEIGHTS", "", "MODEL.DEVICE", args.device),
                *("TEST.DETECTIONS_PER_IMAGE", args.objects),
                *("MODEL.RPN.POST_NMS_TOPK_TEST", args.proposals),
                *("INPUT.MIN_SIZE_TEST", args.min_size, "INPUT.MAX_SIZE_TEST", args.min_size * 5 // 3),
            ]
            if args.depth < 50:
                overrides += ["MODEL.RESNETS.RES2_OUT_CHANNELS", 64]
            if name == "maskx":
                overrides += ["MODEL.ROI_MASK_HEAD.MLP_BRANCH.NUM_LAYERS", 0]
            cfg = load_config(str(config_file(config)), overrides)
            torch.manual_seed(0)
            model = build_model(cfg)
            tame(model)
            detects_everywhere(model.roi_heads.box_predictor.cls_score.bias)
            cfg.MODEL.WEIGHTS = str(folder / f"{name}.pth")
            torch.save({"model": model.state_dict()}, cfg.MODEL.WEIGHTS)
            (folder / f"{name}.yaml").write_text(cfg.dump())


# ---- The ways ----


def write_and_encode(image: Image.Image, masks: torch.Tensor, boxes, path: Path) -> list[dict]:
    """What a plain loop does with the masks of an image."""
    drawn = draw_segmentation_masks(pil_to_tensor(image), masks, alpha=0.45)
    Image.fromarray(drawn.permute(1, 2, 0).numpy()).save(path)
    return [
        {"bbox": box, "segmentation": encode(mask)}
        for box, mask in zip(boxes.tolist(), masks.numpy(), strict=True)
    ]


def loop_over_torchvision(images: list[Path], models: Path, output: Path, args: argparse.Namespace) -> None:
    backbone = resnet_fpn_backbone(
        backbone_name=f"resnet{args.depth}", weights=None, norm_layer=FrozenBatchNorm2d
    )
    model = MaskRCNN(
        backbone,
        NUM_CLASSES + 1,
        rpn_post_nms_top_n_test=args.proposals,
        box_detections_per_img=args.objects,
        min_size=args.min_size,
        max_size=args.min_size * 5 // 3,
    )
    ours = TrainingModule.from_checkpoint(models / "maskx.ckpt").model
    same_detector({"ours": ours, "plain": model})
    model.eval().to(args.device)
    results = []
    for path in images:
        image = Image.open(path).convert("RGB")
        with torch.inference_mode():
            (found,) = model([(pil_to_tensor(image) / 255).to(args.device)])
        kept = found["scores"] >= MIN_SCORE
        masks = (found["masks"][kept, 0] > 0.5).cpu()
        results += write_and_encode(image, masks, found["boxes"][kept], output / f"{path.stem}.png")
    (output / "results.json").write_text(json.dumps(results))


def loop_over_detectron2(images: list[Path], models: Path, output: Path, args: argparse.Namespace) -> None:
    from detectron2.engine import DefaultPredictor

    from maskx_d2.backends.detectron2.config import load_config

    predictor = DefaultPredictor(load_config(str(models / "stock.yaml"), []))
    results = []
    for path in images:
        image = Image.open(path).convert("RGB")
        found = predictor(np.asarray(image)[:, :, ::-1])["instances"].to("cpu")
        found = found[found.scores >= MIN_SCORE]
        results += write_and_encode(
            image, found.pred_masks, found.pred_boxes.tensor, output / f"{path.stem}.png"
        )
    (output / "results.json").write_text(json.dumps(results))


def maskx_predict(
    images: list[Path], models: Path, output: Path, args: argparse.Namespace, *, config: str | None = None
) -> None:
    weights = models / ("maskx.pth" if config else "maskx.ckpt")
    detector = load_detector(weights, config and models / config).to(args.device)
    predict(detector, images, output, min_score=MIN_SCORE, batch_size=args.batch_size)


def maskx_predict_detectron2(*given) -> None:
    maskx_predict(*given, config="maskx.yaml")


WAYS: dict[str, Callable] = {
    "torchvision: plain loop": loop_over_torchvision,
    "torchvision: maskx predict": maskx_predict,
    "Detectron2: plain loop": loop_over_detectron2,
    "Detectron2: maskx predict": maskx_predict_detectron2,
}


def timed(way: Callable, given: tuple) -> tuple[float, float]:
    """Seconds of a way, and the peak of memory of this process in MiB."""
    start = time.perf_counter()
    way(*given)
    seconds = time.perf_counter() - start
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def compared(
    sizes: dict[str, tuple[int, int]],
    numbers: Sequence[int],
    args: argparse.Namespace,
    *,
    apart: bool,
) -> list[dict]:
    """
    Generate images, and measure each way on them.

    Args:
        sizes: width and height of the images, by title.
        numbers: of images of each size.
        args: options of the program.
        apart: whether each way runs in a process of its own. Otherwise, the peak of memory is that of all.
    """
    write_models(args.output / "models", args)
    ways = {name: way for name, way in WAYS.items() if "torchvision" in name or find_spec("detectron2")}
    rows, peer = [], 0.0
    for (title, size), number in zip(sizes.items(), numbers, strict=True):
        folder = args.output / title
        if len(list(folder.glob("*.jpg"))) != number:
            generate(folder, number, size)
        images = find_images([folder])
        for name, way in ways.items():
            output = args.output / f"{title}, {name}"
            output.mkdir(exist_ok=True)
            given = images, args.output / "models", output, args
            seconds, peak = in_own_process(timed, way, given) if apart else timed(way, given)
            rate = number / seconds
            peer = rate if "plain" in name else peer
            rows.append(
                {
                    "images": title,
                    "way": name,
                    "images/s": rate,
                    "to the plain loop": rate / peer,
                    "peak MiB": peak,
                }
            )
            print(*rows[-1].values(), sep="  ", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/predict_speed"))
    parser.add_argument(
        "--images", type=int, nargs=2, default=[10, 40], help=f"of {' and of '.join(SIZES)}"
    )
    parser.add_argument("--objects", type=int, default=20, help="in an image")
    parser.add_argument("--depth", type=int, default=50, help="of the ResNet")
    parser.add_argument("--min-size", type=int, default=800, help="of the resized images")
    parser.add_argument("--proposals", type=int, default=1000, help="of an image")
    parser.add_argument("--batch-size", type=int, default=1, help="of maskx predict")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    rows = compared(SIZES, args.images, args, apart=True)
    print(f"\n{torch.get_num_threads()} threads, {os.cpu_count()} cores, {args.device}")
    print(tabulate(rows, "keys", "github", floatfmt=".2f"))


if __name__ == "__main__":
    main()
