#!/usr/bin/env python3
"""
Mask logits of RoIs: mask weights gathered by class, against computing the masks of all K classes and
picking one, as the original code and Detectron2's class-specific head do.

Each figure is a ratio to a named peer that is timed in turn with it, in the same process. Memory is the
peak of what is allocated.
"""

from collections.abc import Callable

import torch
from benchmark_tools import argument_parser, medians, peak_mib, setting

from maskx_d2.method import build_mask_predictor


def both_ways(num_classes: int, features: torch.Tensor) -> tuple[Callable, Callable]:
    """Mask logits of RoIs by gathered weights, and by those of all classes of which one is picked."""
    num_rois, device = len(features), features.device
    index = torch.arange(num_rois, device=device)
    table = torch.randn(num_classes, 5120, device=device)
    predictor = build_mask_predictor(
        num_classes=num_classes, in_channels=256, mask_side=28, class_embedding="file",
        embedding_table=table, mlp_layers=0,
    ).to(device).eval()  # fmt: skip
    classes = torch.randint(num_classes, (num_rois,), device=device)
    with torch.no_grad():
        weights = predictor.all_class_weights()[:, :, None, None]

    def gathered() -> torch.Tensor:
        return predictor(features, classes, trunk_features=features)

    def all_classes() -> torch.Tensor:
        return torch.nn.functional.conv2d(features, weights)[index, classes]

    return torch.no_grad()(gathered), torch.no_grad()(all_classes)


def main() -> None:
    parser = argument_parser(__doc__, repeats=7)
    parser.add_argument("--rois", type=int, default=100)
    parser.add_argument("--classes", type=int, nargs="+", default=[80, 3001])
    args = parser.parse_args()
    device = args.device
    torch.manual_seed(0)
    features = torch.randn(args.rois, 256, 28, 28, device=device)
    print(f"{args.rois} RoIs of 256 x 28 x 28 {setting(device)}")
    functions = {}
    for num_classes in args.classes:
        gathered, all_classes = both_ways(num_classes, features)
        torch.testing.assert_close(gathered(), all_classes(), rtol=1e-3, atol=1e-2)
        functions[num_classes, "gathered"] = gathered
        functions[num_classes, "all classes"] = all_classes
    times = medians(functions, args.repeats, device=device, warm_up=True)
    memory = {key: peak_mib(function, device) for key, function in functions.items()}
    for num_classes in args.classes:
        fast, slow = times[num_classes, "gathered"], times[num_classes, "all classes"]
        small, large = memory[num_classes, "gathered"], memory[num_classes, "all classes"]
        print(
            f"K = {num_classes:5}: gathered {fast * 1e3:8.2f} ms, all classes {slow * 1e3:9.2f} ms, ratio "
            f"{slow / fast:6.1f}; peak memory {small:6.1f} MiB, {large:7.1f} MiB, {small / large:7.2%}"
        )
    first, last = args.classes[0], args.classes[-1]
    ratio = times[last, "gathered"] / times[first, "gathered"]
    print(f"gathered, K = {last} against K = {first}: {ratio:.2f} x the time")


if __name__ == "__main__":
    main()
