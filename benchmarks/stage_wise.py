#!/usr/bin/env python3
"""
Time of a training iteration of stage 2 of stage-wise training, against one of end-to-end training.

Both are Mask^X R-CNN, ResNet-50-FPN, 80 classes, random weights, on Detectron2, with the same batch. The
frozen detector has no backward pass, and no box branch in training. Each figure is a ratio of medians, the
models timed in turn in this process.
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

CONFIGS = {"end to end": "maskx_R_50_FPN_1x.yaml", "stage 2": "maskx_stage_wise_R_50_FPN_1x.yaml"}


def build(config: str, mlp_layers: int) -> torch.nn.Module:
    overrides = [
        *("MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", "DATASETS.CLASSES_WITH_MASKS", "all"),
        *("MODEL.ROI_MASK_HEAD.MLP_BRANCH.NUM_LAYERS", mlp_layers),
    ]
    model = build_model(load_config(str(config_file(config)), overrides))
    tame(model)
    # The frozen detector wants to be given weights.
    model.load_state_dict(model.state_dict())
    return model.train()


def main() -> None:
    args = batch_arguments(__doc__, side=512)
    images = list(torch.rand(args.images, 3, args.side, args.side))
    objects = targets(args.images, args.side, args.side, args.objects)
    for mlp_layers in (1, 0):
        steps = {}
        for name, config in CONFIGS.items():
            model = build(config, mlp_layers)
            losses, _ = detectron2_calls(model, images, objects)
            steps[name] = functools.partial(training_step, losses, standing_still(model))
        times = medians(steps, args.repeats, warm_up=True)
        title = "with MLP branch" if mlp_layers else "without MLP branch"
        for name, median in times.items():
            print(
                f"{title:18}  {name:10} {median:6.2f} s, {median / times['end to end']:5.2f} x end to end"
            )


if __name__ == "__main__":
    main()
