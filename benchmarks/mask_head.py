#!/usr/bin/env python3
"""
The whole mask head on Detectron2, as it is used: inference against Detectron2's class-specific head, and a
training step with 3,001 classes against one with 80.

Each figure is a ratio to a named peer that is timed in turn with it, in the same process. Memory is the
peak of what is allocated.
"""

import argparse
import functools

import torch
from benchmark_tools import argument_parser, medians, peak_mib, setting
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from maskx_d2.backends.detectron2 import MaskXHead
from maskx_d2.method import build_mask_predictor

TRUNK = {"conv_dims": [256] * 5, "conv_norm": ""}
INPUT = ShapeSpec(channels=256, height=14, width=14)


def stock_head(num_classes: int) -> torch.nn.Module:
    return MaskRCNNConvUpsampleHead(INPUT, num_classes=num_classes, **TRUNK)


def maskx_head(num_classes: int, *, mlp_layers: int, device: torch.device) -> torch.nn.Module:
    """With class embeddings of a box predictor, which is in the model too."""
    predictor = build_mask_predictor(
        num_classes=num_classes, in_channels=256, mask_side=28, mlp_layers=mlp_layers
    )
    head = MaskXHead(INPUT, predictor=predictor, **TRUNK)
    box_predictor = FastRCNNOutputLayers(
        ShapeSpec(channels=1024),
        box2box_transform=Box2BoxTransform(weights=(10, 10, 5, 5)),
        num_classes=num_classes,
    )
    head.connect_box_predictor(box_predictor.to(device))
    return head.to(device)


def detected(num_rois: int, num_classes: int, device: torch.device) -> list[Instances]:
    instances = Instances((800, 800))
    instances.pred_classes = torch.randint(num_classes, (num_rois,), device=device)
    return [instances]


def matched(num_rois: int, num_classes: int, device: torch.device) -> list[Instances]:
    """Positive RoIs of an image with their ground truth."""
    corner = 100 * torch.rand(num_rois, 2)
    boxes = torch.cat([corner, corner + 20 + 100 * torch.rand(num_rois, 2)], 1).to(device)
    instances = Instances((224, 224))
    instances.proposal_boxes = Boxes(boxes)
    instances.gt_classes = torch.randint(num_classes, (num_rois,), device=device)
    instances.gt_masks = BitMasks(torch.rand(num_rois, 224, 224) > 0.5).to(device)
    return [instances]


@torch.no_grad()
def infer(head: torch.nn.Module, features: torch.Tensor, instances: list[Instances]) -> None:
    head(features, instances)


def train(head, optimizer, features, instances) -> None:
    optimizer.zero_grad()
    with EventStorage(0):
        head(features, instances)["loss_mask"].backward()
    optimizer.step()


def compare(title: str, functions: dict, args: argparse.Namespace) -> None:
    """Print times and peaks of memory, as ratios to the first."""
    times = medians(functions, args.repeats, device=args.device, warm_up=True)
    memory = {name: peak_mib(function, args.device) for name, function in functions.items()}
    peer = next(iter(functions))
    for name, seconds in times.items():
        print(
            f"{title:14} {name:34} {seconds * 1e3:8.1f} ms, {seconds / times[peer]:5.2f} x; "
            f"{memory[name]:7.1f} MiB, {memory[name] / memory[peer]:5.2f} x"
        )


def main() -> None:
    parser = argument_parser(__doc__, repeats=7)
    args = parser.parse_args()
    device = args.device
    torch.manual_seed(0)
    print(f"{setting(device)}; ratios to the first")

    features = torch.randn(100, 256, 14, 14, device=device)
    heads = {
        "Detectron2, K = 80": (stock_head(80).to(device), 80),
        "Mask^X without MLP branch, K = 80": (maskx_head(80, mlp_layers=0, device=device), 80),
        "Mask^X without MLP branch, K = 3001": (maskx_head(3001, mlp_layers=0, device=device), 3001),
        "Mask^X, K = 80": (maskx_head(80, mlp_layers=1, device=device), 80),
        "Mask^X, K = 3001": (maskx_head(3001, mlp_layers=1, device=device), 3001),
    }
    functions = {}
    for name, (head, num_classes) in heads.items():
        instances = detected(len(features), num_classes, device)
        functions[name] = functools.partial(infer, head.eval(), features, instances)
    compare("inference, 100", functions, args)

    features = torch.randn(128, 256, 14, 14, device=device)
    for mlp_layers, form in ((0, " without MLP branch"), (1, "")):
        functions = {}
        for num_classes in (80, 3001):
            head = maskx_head(num_classes, mlp_layers=mlp_layers, device=device).train()
            optimizer = torch.optim.SGD(head.parameters(), lr=0.0, momentum=0.9, weight_decay=1e-4)
            instances = matched(len(features), num_classes, device)
            functions[f"Mask^X{form}, K = {num_classes}"] = functools.partial(
                train, head, optimizer, features, instances
            )
        compare("training, 128", functions, args)


if __name__ == "__main__":
    main()
