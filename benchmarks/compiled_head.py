#!/usr/bin/env python3
"""
The mask head on Detectron2, without MLP branch, with its trunk, deconvolution and predictor compiled by
``torch.compile`` for any number of RoIs, against the same head as it is: a training step and inference, and
how many graphs were compiled for several numbers of RoIs.
"""

import functools

import torch
from benchmark_tools import argument_parser, medians, setting, standing_still
from mask_head import detected, infer, maskx_head, matched, train
from torch._dynamo.utils import counters


def main() -> None:
    parser = argument_parser(__doc__, repeats=5)
    parser.add_argument("--rois", type=int, default=32)
    args = parser.parse_args()
    device = args.device
    torch.manual_seed(0)
    plain, compiled = (maskx_head(80, mlp_layers=0, device=device).train() for _ in range(2))
    compiled.load_state_dict(plain.state_dict())
    compiled.mask_logits = torch.compile(compiled.mask_logits, dynamic=True)
    heads = {"as it is": plain, "compiled": compiled}
    features = torch.randn(args.rois, 256, 14, 14, device=device)
    print(f"{args.rois} RoIs {setting(device)}")
    steps = {
        name: functools.partial(train, head, standing_still(head), features, matched(args.rois, 80, device))
        for name, head in heads.items()
    }
    times = medians(steps, args.repeats, device=device, warm_up=True)
    print(f"training step: {times['compiled'] / times['as it is']:.2f} of {1e3 * times['as it is']:.0f} ms")
    for number in (7, 19, 50):
        other = torch.randn(number, 256, 14, 14, device=device)
        train(compiled, standing_still(compiled), other, matched(number, 80, device))
    print(f"graphs after steps with four numbers of RoIs: {counters['stats']['unique_graphs']}")
    inferences = {
        name: functools.partial(infer, head.eval(), features, detected(args.rois, 80, device))
        for name, head in heads.items()
    }
    times = medians(inferences, args.repeats, device=device, warm_up=True)
    print(f"inference: {times['compiled'] / times['as it is']:.2f} of {1e3 * times['as it is']:.0f} ms")


if __name__ == "__main__":
    main()
