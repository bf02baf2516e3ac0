#!/usr/bin/env python3
"""
What masks of known boxes cost: promptable models of transformers, with random weights and the sizes that
they are published in, against Mask^X on torchvision. Parameters, and seconds for an image of 640 x 480 with
10 boxes, medians of calls in turn. Needs transformers.
"""

import functools
import tempfile
from pathlib import Path

import torch
import transformers
from benchmark_tools import argument_parser, medians, num_parameters, setting
from PIL import Image
from tabulate import tabulate

from maskx_d2.backends.torchvision import maskx_rcnn_resnet_fpn
from maskx_d2.inference.detector import KnownObjects
from maskx_d2.teachers.promptable import PromptableModel

NUM_BOXES = 10
SIZE = (640, 480)
PEER = "Mask^X, ResNet-50-FPN"


def sam() -> tuple:
    """SAM ViT-B, the smallest of the three, is the default of transformers."""
    return transformers.SamModel(transformers.SamConfig()), transformers.SamProcessor(
        image_processor=transformers.SamImageProcessor()
    )


def sam2() -> tuple:
    """SAM 2 Hiera-tiny, the smallest of the four, is the default of transformers."""
    return transformers.Sam2Model(transformers.Sam2Config()), transformers.Sam2Processor(
        image_processor=transformers.Sam2ImageProcessor()
    )


TEACHERS = {"SAM, ViT-B": sam, "SAM 2, Hiera-tiny": sam2}


def boxes() -> list[list[float]]:
    """Boxes of a quarter of the image's sides."""
    corners = torch.rand(NUM_BOXES, 2, generator=torch.Generator().manual_seed(0)) * 0.75
    scale = torch.tensor(SIZE * 2)
    return (torch.cat([corners, corners + 0.25], 1) * scale).tolist()


def main() -> None:
    args = argument_parser(__doc__, repeats=3).parse_args()
    pixels = torch.randint(0, 256, (SIZE[1], SIZE[0], 3), generator=torch.Generator().manual_seed(0))
    image = Image.fromarray(pixels.to(torch.uint8).numpy())
    known = KnownObjects(boxes(), [1] * NUM_BOXES)
    torch.manual_seed(0)
    ours = maskx_rcnn_resnet_fpn(num_classes=81, mlp_layers=0).eval().to(args.device)
    tensor = (pixels.permute(2, 0, 1) / 255).to(args.device)
    arguments = (
        [tensor],
        [torch.tensor(known.boxes, device=args.device)],
        [torch.ones(NUM_BOXES, dtype=torch.int64, device=args.device)],
    )
    functions = {PEER: functools.partial(ours.masks_in_boxes, *arguments)}
    sizes = {PEER: num_parameters(ours)}
    with tempfile.TemporaryDirectory() as folder:
        for name, build in TEACHERS.items():
            path = Path(folder) / name
            for part in build():
                part.save_pretrained(path)
            teacher = PromptableModel(str(path)).to(str(args.device))
            sizes[name] = num_parameters(teacher._model)
            functions[name] = functools.partial(teacher.masks_in_boxes, [image], [known])
        times = medians(functions, args.repeats, device=args.device, warm_up=True)
    rows = [[name, sizes[name], seconds, seconds / times[PEER]] for name, seconds in times.items()]
    print(f"an image of {SIZE[0]} x {SIZE[1]} with {NUM_BOXES} boxes {setting(args.device)}\n")
    headers = ["", "parameters (M)", "seconds an image", f"x {PEER}"]
    print(tabulate(rows, headers, "github", floatfmt=("", ".0f", ".2f", ".1f")))


if __name__ == "__main__":
    main()
