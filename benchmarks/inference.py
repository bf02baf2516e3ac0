#!/usr/bin/env python3
"""
Inference of whole models on Detectron2, ResNet-50-FPN, with 3,001 classes against 80.

Random weights that detect 100 objects. Each figure is a ratio of medians to Mask^X with 80 classes, the
models timed in turn in this process.
"""

import functools

import torch
from benchmark_tools import argument_parser, detects_everywhere, medians, setting, tame
from detectron2.modeling import build_model

from maskx_d2.backends.detectron2.config import load_config
from maskx_d2.runtime.configs import config_file

MODELS = {
    "Mask^X, K = 80": ("maskx_R_50_FPN_1x.yaml", []),
    "Mask^X, K = 3001": ("visual_genome/maskx_inference_R_50_FPN.yaml", []),
    "Mask^X, K = 3001, all boxes": (
        "visual_genome/maskx_inference_R_50_FPN.yaml",
        ["MODEL.ROI_BOX_HEAD.GATHERED_REGRESSION", False],
    ),
    "Mask R-CNN, K = 80": ("mask_rcnn_R_50_FPN_1x.yaml", []),
    "Mask R-CNN, K = 3001": ("mask_rcnn_R_50_FPN_1x.yaml", ["MODEL.ROI_HEADS.NUM_CLASSES", 3001]),
}


def build(config: str, overrides: list, device: torch.device) -> torch.nn.Module:
    cfg = load_config(str(config_file(config)), [*overrides, "MODEL.DEVICE", str(device)])
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    tame(model)
    # The first classes have 0.3 of the probability each, in all proposals.
    detects_everywhere(model.roi_heads.box_predictor.cls_score.bias)
    return model


@torch.no_grad()
def infer(model: torch.nn.Module, inputs: list[dict]) -> list[dict]:
    return model(inputs)


def main() -> None:
    parser = argument_parser(__doc__, repeats=5)
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1333)
    args = parser.parse_args()
    image = 255 * torch.rand(3, args.height, args.width, generator=torch.Generator().manual_seed(0))
    inputs = [{"image": image, "height": args.height, "width": args.width}]
    functions = {}
    for name, (config, overrides) in MODELS.items():
        model = build(config, overrides, args.device)
        found = infer(model, inputs)[0]["instances"]
        if len(found) != 100:
            raise SystemExit(f"{name} detects {len(found)} objects, expected 100")
        functions[name] = functools.partial(infer, model, inputs)
    print(f"an image of {args.height} x {args.width} {setting(args.device)}")
    times = medians(functions, args.repeats, device=args.device, warm_up=True)
    peer = next(iter(times))
    for name, seconds in times.items():
        print(f"{name:28} {seconds * 1e3:8.1f} ms, {seconds / times[peer]:5.2f} x {peer}")


if __name__ == "__main__":
    main()
