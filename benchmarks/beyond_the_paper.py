#!/usr/bin/env python3
"""
What box supervision and deep mask heads cost: time of a training step, end to end, on Detectron2.

All are ResNet-50-FPN, 80 classes, random weights, with the same images, of whose objects every other has a
box only. Without box supervision these do not reach the mask head; with masks of all objects as many RoIs
reach it as with box supervision. Each figure is a ratio of medians, the models timed in turn in this
process.
"""

import functools

import torch
from benchmark_tools import (
    batch_arguments,
    detectron2_calls,
    medians,
    standing_still,
    tame,
    targets,
    training_step,
)
from detectron2.modeling import build_model

from maskx_d2.backends.detectron2.config import load_config
from maskx_d2.runtime.configs import config_file

MASKX, BOXES = "maskx_R_50_FPN_1x.yaml", "beyond/maskx_box_supervised_R_50_FPN_1x.yaml"
AGNOSTIC, DEEP = "class_agnostic_R_50_FPN_1x.yaml", "beyond/class_agnostic_deep_R_50_FPN.yaml"
HEAD = "MODEL.ROI_MASK_HEAD"
# The ramp would be zero here, and take as long.
WITHOUT_PAIRWISE = [f"{HEAD}.BOX_SUPERVISION.PAIRWISE", 0.0]
LIMIT = [f"{HEAD}.ROIS_PER_IMAGE", 32]
# By title: config, keys, whether every other object has a box only. The first of each group is the peer.
COMPARISONS = {
    "Mask^X": {
        "without": (MASKX, [], True),
        "without, masks of all objects": (MASKX, [], False),
        "box supervision": (BOXES, WITHOUT_PAIRWISE, True),
        "box supervision and pairwise": (BOXES, [], True),
        "box supervision, 32 RoIs an image": (BOXES, [*WITHOUT_PAIRWISE, *LIMIT], True),
    },
    "class-agnostic": {
        "4 convolutions": (AGNOSTIC, [], False),
        "4 convolutions, ground-truth boxes": (AGNOSTIC, [f"{HEAD}.TRAIN_ROIS", "ground_truth"], False),
        "Hourglass-20, ground-truth boxes": (DEEP, [f"{HEAD}.TRUNK", "hourglass_20"], False),
        "Hourglass-52, ground-truth boxes": (DEEP, [], False),
        "Hourglass-100, ground-truth boxes": (DEEP, [f"{HEAD}.TRUNK", "hourglass_100"], False),
    },
}


def build(config: str, overrides: list) -> torch.nn.Module:
    settings = ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", "DATASETS.CLASSES_WITH_MASKS", "all"]
    model = build_model(load_config(str(config_file(config)), [*settings, *overrides]))
    tame(model)
    return model.train()


def main() -> None:
    args = batch_arguments(__doc__, side=512)
    images = list(torch.rand(args.images, 3, args.side, args.side))
    objects = targets(args.images, args.side, args.side, args.objects)
    some_masks = [{**o, "has_mask": torch.arange(len(o["labels"])) % 2 == 0} for o in objects]
    for title, models in COMPARISONS.items():
        steps = {}
        for name, (config, overrides, boxes_only) in models.items():
            model = build(config, overrides)
            losses, _ = detectron2_calls(model, images, some_masks if boxes_only else objects)
            steps[name] = functools.partial(training_step, losses, standing_still(model))
        times = medians(steps, args.repeats, warm_up=True)
        peer = next(iter(times))
        for name, median in times.items():
            print(f"{title:15} {name:36} {median:6.2f} s, {median / times[peer]:5.2f} x {peer}")


if __name__ == "__main__":
    main()
