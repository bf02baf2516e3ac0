#!/usr/bin/env python3
"""
Memory and time on large images: masks of 100 boxes of an image of 4000 x 3000 pixels, from probabilities in
their boxes to RLE, against pasting all of them into the image first as torchvision and Detectron2 do; and a
training sample of 3000 x 3000 pixels with 250 objects, one of which has a mask, on both backends.

Each runs in a process of its own. Memory is its peak above what it has before.
"""

import json
import resource
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from benchmark_tools import in_own_process
from PIL import Image
from tabulate import tabulate

from maskx_d2.data.rle import encode

SIZE = (3000, 4000)
NUM_BOXES = 100
SAMPLE_SIDE = 3000
NUM_OBJECTS = 250


def masks_and_boxes() -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes of a twentieth to a third of the sides, with disks of probability."""
    generator = torch.Generator().manual_seed(0)
    sides = torch.tensor([SIZE[1], SIZE[0]])
    size = sides * (0.05 + 0.28 * torch.rand(NUM_BOXES, 2, generator=generator))
    corner = (sides - size) * torch.rand(NUM_BOXES, 2, generator=generator)
    axis = torch.linspace(-1, 1, 28)
    disk = (1.5 - (axis[:, None] ** 2 + axis**2).sqrt() * 1.2).clamp(0, 1)
    return disk.expand(NUM_BOXES, 28, 28).contiguous(), torch.cat([corner, corner + size], dim=1)


def torchvision_pastes_all(folder: Path) -> object:
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    masks, boxes = masks_and_boxes()
    pasted = paste_masks_in_image(masks.unsqueeze(1), boxes, SIZE)
    return [encode(mask) for mask in (pasted[:, 0] > 0.5).numpy()]


def torchvision_one_at_a_time(folder: Path) -> object:
    from maskx_d2.backends.torchvision.mask_pasting import masks_as_rle

    return masks_as_rle(*masks_and_boxes(), SIZE)


def detectron2_pastes_all(folder: Path) -> object:
    from detectron2.layers import paste_masks_in_image

    return [encode(mask) for mask in paste_masks_in_image(*masks_and_boxes(), SIZE).numpy()]


def detectron2_few_at_a_time(folder: Path) -> object:
    from maskx_d2.backends.detectron2.mask_pasting import masks_as_rle

    return masks_as_rle(*masks_and_boxes(), SIZE)


def write_sample(folder: Path) -> None:
    side = SAMPLE_SIDE
    Image.fromarray(np.full((side, side, 3), 127, np.uint8)).save(folder / "1.jpg")
    objects = [
        {"id": i + 1, "image_id": 1, "category_id": 1, "bbox": [10 * i, 10 * i, 400, 300], "iscrowd": 0}
        for i in range(NUM_OBJECTS)
    ]
    for record in objects:
        record["area"] = 120_000
    objects[0]["segmentation"] = [[0, 0, 400, 0, 400, 300, 0, 300]]
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "width": side, "height": side}],
        "annotations": objects,
        "categories": [{"id": 1, "name": "thing"}],
    }
    (folder / "sample.json").write_text(json.dumps(content))


def torchvision_sample(folder: Path) -> object:
    from maskx_d2.backends.torchvision.data_module import CocoDataModule

    path = folder / "sample.json"
    module = CocoDataModule(path, folder, path, folder, num_workers=0, batch_size=1)
    return module._training[0][0]


def detectron2_sample(folder: Path) -> object:
    from detectron2.data.datasets import load_coco_json

    from maskx_d2.backends.detectron2 import PartiallySupervisedMapper

    mapper = PartiallySupervisedMapper(
        is_train=True,
        augmentations=[],
        image_format="RGB",
        use_instance_mask=True,
        instance_mask_format="bitmask",
    )
    return mapper(load_coco_json(str(folder / "sample.json"), str(folder), "sample")[0])


MASKS = {
    "torchvision pastes all": torchvision_pastes_all,
    "maskx_d2 on torchvision": torchvision_one_at_a_time,
    "Detectron2 pastes all": detectron2_pastes_all,
    "maskx_d2 on Detectron2": detectron2_few_at_a_time,
}
SAMPLES = {"maskx_d2 on Detectron2": detectron2_sample, "maskx_d2 on torchvision": torchvision_sample}


def _peak() -> float:
    """Of this process, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(way: Callable, folder: Path, with_result: bool) -> tuple[float, float, object]:
    """Seconds, MiB, and what it returns if asked for; for a process of its own."""
    import maskx_d2.backends.torchvision.data_module

    if find_spec("detectron2") is not None:
        import maskx_d2.backends.detectron2  # noqa: F401
    before, start = _peak(), time.perf_counter()
    result = way(folder)
    return time.perf_counter() - start, _peak() - before, result if with_result else None


def main() -> None:
    lines, rles = [], {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_sample(folder)
        for title, ways in (
            (f"{NUM_BOXES} masks, {SIZE[1]} x {SIZE[0]}", MASKS),
            (f"a sample, {SAMPLE_SIDE} x {SAMPLE_SIDE}, {NUM_OBJECTS} objects, 1 mask", SAMPLES),
        ):
            for name, way in ways.items():
                if "etectron2" in way.__name__ and find_spec("detectron2") is None:
                    continue
                seconds, peak, rles[title, name] = in_own_process(measured, way, folder, ways is MASKS)
                lines.append([title, name, f"{seconds:.2f}", f"{peak:.0f}"])
    print(tabulate(lines, ["", "", "seconds", "MiB"], "github", disable_numparse=True))
    by_peer = list(rles.values())
    assert by_peer[0] == by_peer[1], "other masks than torchvision's"
    if len(by_peer) > 4:
        assert by_peer[2] == by_peer[3], "other masks than Detectron2's"
    print("the same RLE")


if __name__ == "__main__":
    main()
