#!/usr/bin/env python3
"""
Time of a training iteration of stage 2 of stage-wise training, against one of end-to-end training.

Both are Mask^X R-CNN, ResNet-50-FPN, 80 classes, random weights, on Detectron2, with the same batch. The
frozen detector has no backward pass, and no box branch in training. Each figure is a ratio of medians, the
models timed in turn in this process.
"""

import argparse
import functools
import statistics

import torch
from detectron2.modeling import build_model
from hosts import detectron2_calls, seconds, tame, targets, training_step

from maskx_d2.config_files import config_file
from maskx_d2.hosts.detectron2.config import load_config

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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--side", type=int, default=512, help="of the images, in pixels")
    parser.add_argument("--images", type=int, default=2, help="in a step")
    parser.add_argument("--objects", type=int, default=8, help="in an image")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    images = list(torch.rand(args.images, 3, args.side, args.side))
    objects = targets(args.images, args.side, args.objects)
    print(
        f"{args.images} images of {args.side} x {args.side} with {args.objects} objects each, CPU, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    for mlp_layers in (1, 0):
        steps = {}
        for name, config in CONFIGS.items():
            model = build(config, mlp_layers)
            losses, _ = detectron2_calls(model, images, objects)
            trained = [p for p in model.parameters() if p.requires_grad]
            optimizer = torch.optim.SGD(trained, lr=0.0, momentum=0.9, weight_decay=1e-4)
            steps[name] = functools.partial(training_step, losses, optimizer)
        times: dict[str, list[float]] = {name: [] for name in steps}
        for repeat in range(args.repeats + 1):
            for name, step in steps.items():
                torch.manual_seed(repeat)
                elapsed = seconds(step)
                if repeat > 0:  # the first is for warming up
                    times[name].append(elapsed)
        medians = {name: statistics.median(of_model) for name, of_model in times.items()}
        title = "with MLP branch" if mlp_layers else "without MLP branch"
        for name, median in medians.items():
            print(
                f"{title:18}  {name:10} {median:6.2f} s, {median / medians['end to end']:5.2f} x end to end"
            )


if __name__ == "__main__":
    main()
