"""What several benchmarks share: options, times in turn, memory, models, batches and training steps."""

import argparse
import json
import math
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from maskx_d2.backends.torchvision import maskx_rcnn_resnet_fpn
from maskx_d2.data.class_names import indices_in
from maskx_d2.runtime.configs import config_file

NUM_CLASSES = 80
_NUM_DETECTED = 3  # classes that every proposal is taken for
PEER = "torchvision: Mask R-CNN"


# ---- Recipes on a frozen detector ----


def recipe_argument_parser(description: str, *, output: str) -> argparse.ArgumentParser:
    """Of a benchmark that trains mask heads on a frozen detector: data, detector and schedule."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    pair = {"nargs": 2, "type": Path, "required": True, "metavar": ("JSON", "IMAGES")}
    parser.add_argument("--train", **pair)
    parser.add_argument("--val", **pair)
    parser.add_argument("--weights", required=True, metavar="FILE", help="checkpoint of the detector")
    parser.add_argument("--config-file", metavar="FILE", help="its config, if it is Detectron2's")
    parser.add_argument("--output", type=Path, default=Path(output), metavar="DIR")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--channels", type=int, default=64, help="of the mask heads")
    parser.add_argument("--device", default="cpu")
    return parser


def hidden_classes(text: str, names: list[str], *, option: str) -> list[int]:
    """
    Classes whose masks are hidden.

    Args:
        text: their names with commas between them, or a file of the names of the other classes.
        names: of all classes.
        option: for error messages.
    """
    if Path(text).is_file():
        with_masks = set(Path(text).read_text(encoding="utf-8").splitlines())
        return [index for index, name in enumerate(names) if name not in with_masks]
    return indices_in(names, text.split(","), what=f"{option} {text}")


# ---- Time and memory ----


def seconds(function: Callable, device: torch.device | str = "cpu") -> float:
    """How long one call takes."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def medians(
    functions: Mapping[str, Callable],
    repeats: int,
    *,
    device: torch.device | str = "cpu",
    warm_up: bool = False,
) -> dict[str, float]:
    """
    Median seconds of each function, called in turn, each time with random numbers of its own.

    Args:
        functions: by name.
        repeats: calls of each.
        device: that they run on.
        warm_up: whether each is called once more before, without being counted.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(-warm_up, repeats):
        for name, function in functions.items():
            torch.manual_seed(repeat + 1)
            elapsed = seconds(function, device)
            if repeat >= 0:
                times[name].append(elapsed)
    return {name: statistics.median(of_function) for name, of_function in times.items()}


def in_own_process(function: Callable, *args) -> object:
    """What a function returns that is called in a new process, whose peak of memory is its own."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as process:
        return process.submit(function, *args).result()


def argument_parser(description: str, *, repeats: int) -> argparse.ArgumentParser:
    """Of a benchmark that may run on a GPU: ``--repeats`` and ``--device``, a GPU's if there is one."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument(
        "--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu"
    )
    return parser


def setting(device: torch.device) -> str:
    """What a benchmark runs on."""
    return f"on {device}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def batch_arguments(description: str, *, side: int) -> argparse.Namespace:
    """The options of benchmarks on a batch of images, and a line that says what they are."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--side", type=int, default=side, help="of the images, in pixels")
    parser.add_argument("--images", type=int, default=2, help="in a step")
    parser.add_argument("--objects", type=int, default=8, help="in an image")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    print(
        f"{args.images} images of {args.side} x {args.side} with {args.objects} objects each, CPU, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    return args


def peak_mib(function: Callable, device: torch.device | str = "cpu") -> float:
    """Peak of what tensors take that are allocated while it runs, in MiB: as torch's allocator tells."""
    device = torch.device(device)
    if device.type == "cuda":
        function()  # what is allocated once and kept, as cuBLAS' workspace
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]")
    total = peak = 0
    for _, change in changes:
        total += change
        peak = max(peak, total)
    return peak / 2**20


# ---- Models and batches ----


def num_parameters(module: torch.nn.Module) -> float:
    """In millions."""
    return sum(p.numel() for p in module.parameters()) / 1e6


def targets(num_images: int, height: int, width: int, objects: int) -> list[dict]:
    """Boxes of a quarter to a half of the image's sides, with a full mask each."""
    generator = torch.Generator().manual_seed(0)
    sides = torch.tensor([width, height])
    result = []
    for _ in range(num_images):
        size = sides * (0.25 + 0.25 * torch.rand(objects, 2, generator=generator))
        corner = (sides - size) * torch.rand(objects, 2, generator=generator)
        boxes = torch.cat([corner, corner + size], dim=1)
        masks = torch.zeros(objects, height, width, dtype=torch.uint8)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y0:y1, x0:x1] = 1
        labels = torch.randint(1, NUM_CLASSES + 1, (objects,), generator=generator)
        result.append({"boxes": boxes, "labels": labels, "masks": masks})
    return result


def torchvision_models(
    height: int, width: int, *, depth: int = 50, few_rois: bool = False, **mask_branch
) -> dict[str, torch.nn.Module]:
    """``few_rois``: to try a program; ``mask_branch``: options of Mask^X's."""
    options = {"min_size": height, "max_size": max(height, width), "box_score_thresh": 0.0}
    if few_rois:
        options |= {"rpn_post_nms_top_n_test": 50, "box_detections_per_img": 5}
        options["box_batch_size_per_image"] = 32
    backbone = resnet_fpn_backbone(
        backbone_name=f"resnet{depth}", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3
    )
    models = {PEER: MaskRCNN(backbone, NUM_CLASSES + 1, **options)}
    for name, more in (("Mask^X", {}), ("Mask^X without MLP branch", {"mlp_layers": 0})):
        model = maskx_rcnn_resnet_fpn(
            num_classes=NUM_CLASSES + 1, depth=depth, norm="FrozenBN", **options, **{**mask_branch, **more}
        )
        for part in (model.backbone.body.conv1, model.backbone.body.layer1):
            part.requires_grad_(False)
        models[f"torchvision: {name}"] = model
    return models


def torchvision_calls(model, images: list, objects: list[dict]) -> tuple[Callable, Callable]:
    return lambda: model(images, objects), lambda: model(images)


def detectron2_models(height: int, width: int, overrides: list | None = None) -> dict[str, torch.nn.Module]:
    from detectron2.modeling import build_model

    from maskx_d2.backends.detectron2.config import load_config

    settings = [
        *("INPUT.MIN_SIZE_TEST", height, "INPUT.MAX_SIZE_TEST", max(height, width), "MODEL.WEIGHTS", ""),
        *("MODEL.DEVICE", "cpu", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0),
        *("DATASETS.CLASSES_WITH_MASKS", "all"),
    ]
    maskx = str(config_file("maskx_R_50_FPN_1x.yaml"))
    configs = {
        "Mask R-CNN": (str(config_file("mask_rcnn_R_50_FPN_1x.yaml")), []),
        "Mask^X": (maskx, []),
        "Mask^X without MLP branch": (maskx, ["MODEL.ROI_MASK_HEAD.MLP_BRANCH.NUM_LAYERS", 0]),
    }
    return {
        f"Detectron2: {name}": build_model(load_config(config, [*settings, *(overrides or []), *more]))
        for name, (config, more) in configs.items()
    }


def detectron2_calls(model, images: list, objects: list[dict]) -> tuple[Callable, Callable]:
    from detectron2.structures import BitMasks, Boxes, Instances
    from detectron2.utils.events import EventStorage

    inputs = []
    for image, of_image in zip(images, objects, strict=True):
        height, width = image.shape[-2:]
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(of_image["boxes"])
        instances.gt_classes = of_image["labels"] - 1
        instances.gt_masks = BitMasks(of_image["masks"].bool())
        if "has_mask" in of_image:
            instances.gt_has_mask = of_image["has_mask"]
        inputs.append({"image": image * 255, "instances": instances, "height": height, "width": width})

    def losses():
        with EventStorage():
            return model(inputs)

    return losses, lambda: model(inputs)


def same_detector(models: dict[str, torch.nn.Module]) -> dict[str, torch.nn.Module]:
    """The same models, with the weights of the first in what all have: so all see the same RoIs."""
    first, *others = models.values()
    state = first.state_dict()
    for model in others:
        own = model.state_dict()
        shared = {n: v for n, v in state.items() if n in own and own[n].shape == v.shape}
        model.load_state_dict(shared, strict=False)
    return models


def detects_everywhere(bias: torch.Tensor, *, first: int = 0) -> None:
    """
    Make every proposal be taken for three classes, so that an image has as many detections as there may be.

    Args:
        bias: of the class scores.
        first: the first of these classes, after the background where that is first.
    """
    bias.data[first : first + _NUM_DETECTED] = math.log(_NUM_DETECTED * len(bias))


def tame(model: torch.nn.Module) -> None:
    """With frozen normalisation and random weights, activations grow from block to block: make them not."""
    for name, buffer in model.named_buffers():
        if name.endswith(("bn3.weight", "conv3.norm.weight")):
            buffer.fill_(0.2)


def standing_still(model: torch.nn.Module) -> torch.optim.Optimizer:
    """An optimiser that does all its work and changes nothing: random weights stay what they are."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.SGD(trained, lr=0.0, momentum=0.9, weight_decay=1e-4)


def training_step(losses: Callable, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    sum(losses().values()).backward()
    optimizer.step()
