#!/usr/bin/env python3
"""
Makes ``runs.tar.xz``: a run folder of each backend as version 0.2.0 left it, on two images, and what its
models detect. It needs a checkout of 0.2.0 on ``PYTHONPATH``, whose path is the argument. Large tensors are
set to zero, so that the archive is small.
"""

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import torch
from PIL import Image, ImageDraw

CHECKOUT = Path(sys.argv[1])
CATEGORIES = [{"id": 3, "name": "box"}, {"id": 7, "name": "disk"}]
MODELS = {
    "detectron2": ["detectron2/model_0000001.pth", "detectron2/model_final.pth"],
    "torchvision": ["torchvision/last.ckpt", "torchvision/model_final.ckpt"],
}
DETECTRON2 = {
    **{"MODEL.ROI_HEADS.NUM_CLASSES": 2, "MODEL.FPN.OUT_CHANNELS": 16, "MODEL.ROI_BOX_HEAD.FC_DIM": 12},
    **{"MODEL.ROI_MASK_HEAD.CONV_DIM": 8, "MODEL.ROI_MASK_HEAD.NUM_CONV": 2, "MODEL.WEIGHTS": ""},
    **{"MODEL.ROI_MASK_HEAD.TRANSFER.HIDDEN_DIM": 8, "MODEL.META_ARCHITECTURE": "GeneralizedRCNN"},
    **{"SOLVER.MAX_ITER": 2, "SOLVER.CHECKPOINT_PERIOD": 1, "SOLVER.IMS_PER_BATCH": 2, "SEED": 1},
    **{"DATALOADER.NUM_WORKERS": 0, "MODEL.DEVICE": "cpu", "OUTPUT_DIR": "detectron2"},
    "DATASETS.REGISTER": "[['fx_train', 'train.json', 'train'], ['fx_test', 'test.json', 'test']]",
    "DATASETS.TRAIN": "('fx_train',)",
    "DATASETS.TEST": "('fx_test',)",
    "DATASETS.CLASSES_WITH_MASKS": "split.txt",
}
TORCHVISION = {
    **{"data.train_json": "train.json", "data.train_images": "train", "data.val_json": "test.json"},
    **{"data.val_images": "test", "data.classes_with_masks": "split.txt", "data.batch_size": 2},
    **{"data.num_workers": 0, "trainer.default_root_dir": "torchvision", "trainer.max_steps": 2},
    **{"checkpoint_period": 1, "trainer.accelerator": "cpu", "model.fpn_channels": 16},
    **{"model.box_head_dim": 12, "model.mask_head_channels": [8, 8], "model.transfer_hidden_dim": 8},
    **{"model.min_size": 64, "model.max_size": 64},
}


def make_dataset(split: str) -> None:
    Path(split).mkdir()
    images, annotations = [], []
    for i in (1, 2):
        image = Image.new("RGB", (64, 64), (200, 220, 240))
        draw = ImageDraw.Draw(image)
        draw.rectangle((5, 5, 30, 30), fill=(200, 30, 30))
        draw.ellipse((30, 30, 60, 60), fill=(30, 30, 200))
        image.save(Path(split, f"{i}.png"))
        images.append({"id": i, "file_name": f"{i}.png", "width": 64, "height": 64})
        box = {"id": 2 * i, "category_id": 3, "bbox": [5, 5, 26, 26], "area": 676}
        box["segmentation"] = [[5, 5, 31, 5, 31, 31, 5, 31]]
        disk = {"id": 2 * i + 1, "category_id": 7, "bbox": [30, 30, 31, 31], "area": 755}
        annotations += [{**a, "image_id": i, "iscrowd": 0} for a in (box, disk)]
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    Path(f"{split}.json").write_text(json.dumps(content))


def with_zeros(value):
    if isinstance(value, torch.Tensor):
        return torch.zeros_like(value) if value.numel() > 600 else value
    if isinstance(value, dict):
        return type(value)((key, with_zeros(each)) for key, each in value.items())
    if isinstance(value, list | tuple):
        return type(value)(map(with_zeros, value))
    return value


def main() -> None:
    from maskx_d2 import load_detector

    make_dataset("train"), make_dataset("test")
    Path("split.txt").write_text("box\n")
    configs = CHECKOUT / "configs"
    keys = [str(word) for pair in DETECTRON2.items() for word in pair]
    config = str(configs / "demo" / "maskx_as_in_the_paper_R_18_FPN.yaml")
    train_net = [sys.executable, str(CHECKOUT / "train_net.py")]
    subprocess.run([*train_net, "--config-file", config, *keys], check=True)
    config = str(configs / "torchvision" / "small_resnet18_fpn.yaml")
    options = [f"--{key}={value}" for key, value in TORCHVISION.items()]
    fit = [sys.executable, "-m", "maskx_d2", "torchvision", "fit"]
    subprocess.run([*fit, "--config", config, *options], check=True)
    for path in MODELS["detectron2"] + MODELS["torchvision"]:
        torch.save(with_zeros(torch.load(path, weights_only=False)), path)

    image = Image.open("test/1.png").convert("RGB")
    keys = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0]
    detectors = {
        "detectron2": load_detector(MODELS["detectron2"][-1], "detectron2/config.yaml", overrides=keys),
        "torchvision": load_detector(MODELS["torchvision"][-1]),
    }
    found = {name: detector.coco_results([image], [1])[0][:20] for name, detector in detectors.items()}
    Path("expected.json").write_text(json.dumps(found))
    for path in Path(".").glob("*/inference/evaluation.json"):
        path.write_text(path.read_text().replace(str(Path.cwd()), "/data"))
    left_out = ("log.txt", "events.out", "instances_predictions.pth", "model_0000000.pth", "runs.tar.xz")
    with tarfile.open("runs.tar.xz", "w:xz") as archive:
        for path in sorted(Path(".").rglob("*")):
            if path.is_file() and not path.name.startswith(left_out):
                archive.add(path)


if __name__ == "__main__":
    main()
