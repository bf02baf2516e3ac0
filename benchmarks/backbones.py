#!/usr/bin/env python3
"""
Backbones of the torchvision backend: parameters, and seconds of inference on one image. Random weights, and
the same proposals and detections in number. Times are ratios of medians to ResNet-50, the models timed in
turn in this process. Needs timm.
"""

import functools

import torch
from benchmark_tools import argument_parser, medians, num_parameters, setting
from tabulate import tabulate
from torch import nn

from maskx_d2.backends.torchvision import maskx_rcnn_resnet_fpn

PEER = "ResNet-50"
TIMM = ("tf_efficientnet_lite0", "mobilenetv3_large_100", "regnety_016", "convnext_tiny")
BACKBONES = {
    PEER: {"depth": 50},
    "ResNet-18": {"depth": 18},
    **{name: {"backbone": name} for name in TIMM},
}
NUM_CLASSES = 80


def build(options: dict, side: int, device: torch.device) -> nn.Module:
    """A model that keeps 100 detections, whatever its weights are."""
    torch.manual_seed(0)
    model = maskx_rcnn_resnet_fpn(
        num_classes=NUM_CLASSES + 1,
        min_size=side,
        max_size=2 * side,
        mlp_layers=0,
        box_score_thresh=0.0,
        **options,
    )
    return model.eval().to(device)


@torch.inference_mode()
def infer(model: nn.Module, image: torch.Tensor) -> list[dict]:
    return model([image])


def main() -> None:
    parser = argument_parser(__doc__, repeats=5)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=640)
    args = parser.parse_args()
    image = torch.rand(3, args.height, args.width, generator=torch.Generator().manual_seed(0))
    image = image.to(args.device)
    models = {name: build(options, args.height, args.device) for name, options in BACKBONES.items()}
    for name, model in models.items():
        num_found = len(infer(model, image)[0]["boxes"])
        if num_found != 100:
            raise SystemExit(f"{name} detects {num_found} objects, expected 100")
    functions = {name: functools.partial(infer, model, image) for name, model in models.items()}
    times = medians(functions, args.repeats, device=args.device, warm_up=True)
    lines = [
        [
            name,
            num_parameters(models[name].backbone.body),
            num_parameters(models[name]),
            seconds,
            seconds / times[PEER],
        ]
        for name, seconds in times.items()
    ]
    print(f"an image of {args.height} x {args.width} {setting(args.device)}\n")
    headers = ["", "parameters of it (M)", "of the model (M)", "seconds an image", f"x {PEER}"]
    print(tabulate(lines, headers, "github", floatfmt=("", ".1f", ".1f", ".2f", ".2f")))


if __name__ == "__main__":
    main()
