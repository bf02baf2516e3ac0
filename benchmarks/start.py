#!/usr/bin/env python3
"""
What a run does before its first image: from an annotation file to Detectron2's dicts with every annotation
checked, against Detectron2's own loading, which checks none.

Generated files of the size of `vg3k_train` (boxes of 3,001 classes) and of COCO's training set (118,287
images, 860,001 objects with polygons), a process for each figure.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from visual_genome import generate as generate_visual_genome

from maskx_d2.data.class_names import coco_class_names
from maskx_d2.data.visual_genome import convert_visual_genome

COCO_IMAGES, COCO_OBJECTS = 118_287, 860_001


def visual_genome(folder: Path, scale: float) -> Path:
    generate_visual_genome(folder, round(108_077 * scale))
    inputs = (folder / name for name in ("image_data.json", "objects.json", "instances_val2017.json"))
    convert_visual_genome(*inputs, folder / "genome")
    return folder / "genome" / "vg3k_train.json"


def coco(folder: Path, scale: float) -> Path:
    """Seven objects an image, outlines of 26 points on average, one in a hundred a crowd."""
    rng = random.Random(0)
    images = [
        {"id": 5 * i, "file_name": f"{5 * i:012}.jpg", "width": 640, "height": 480, "license": 3}
        for i in range(1, round(COCO_IMAGES * scale) + 1)
    ]
    path = folder / "instances_train2017.json"
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(coco_class_names())]
    with path.open("w") as file:
        file.write(f'{{"images": {json.dumps(images)}, "categories": {json.dumps(categories)}')
        file.write(', "annotations": [')
        for number in range(1, round(COCO_OBJECTS * scale) + 1):
            x, y = round(rng.uniform(0, 500), 2), round(rng.uniform(0, 380), 2)
            outline = [round(c + rng.uniform(0, 100), 2) for _ in range(rng.randint(4, 48)) for c in (x, y)]
            is_crowd = number % 100 == 0
            crowd = {"size": [480, 640], "counts": [480 * 100, 480 * 300, 480 * 240]}
            annotation = {
                "segmentation": crowd if is_crowd else [outline], "area": 5000.5, "iscrowd": int(is_crowd),
                "image_id": 5 * rng.randint(1, len(images)), "bbox": [x, y, 100.0, 100.0],
                "category_id": rng.randint(1, 80), "id": number,
            }  # fmt: skip
            file.write((", " if number > 1 else "") + json.dumps(annotation))
        file.write("]}")
    return path


FILES = {"vg3k_train": visual_genome, "COCO": coco}


# ---- What is measured ----


def by_detectron2(path: Path) -> int:
    from detectron2.data.datasets import load_coco_json

    return len(load_coco_json(str(path), "images", "measured"))


def by_maskx(path: Path) -> int:
    from detectron2.config import get_cfg
    from detectron2.data import DatasetCatalog

    from maskx_d2.backends.detectron2 import add_maskx_config
    from maskx_d2.backends.detectron2.datasets import register_datasets

    cfg = get_cfg()
    add_maskx_config(cfg)
    cfg.DATASETS.MASKX_REGISTER = [["measured", str(path), str(path.parent)]]
    register_datasets(cfg)
    return len(DatasetCatalog.get("measured"))


PROGRAMS = {"Detectron2": by_detectron2, "with the check": by_maskx}


def measure(program: str, path: Path) -> dict:
    import maskx_d2.backends.detectron2  # noqa: F401

    start = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    images = PROGRAMS[program](path)
    seconds = time.perf_counter() - start
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    return {"images": images, "seconds": seconds, "peak": peak}


def arguments(description: str, programs: Mapping[str, Callable], measure: Callable) -> argparse.Namespace:
    """Of a benchmark that runs each of its programs in a process of its own, which ends here."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="of the files' sizes")
    parser.add_argument("--program", choices=programs, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.program:
        print(json.dumps(measure(args.program, args.file)))
        sys.exit()
    return args


def measured(script: str, programs: Iterable[str], path: Path) -> Iterator[tuple[str, dict]]:
    """What each of a script's programs has found of a file."""
    for program in programs:
        command = [sys.executable, script, "--program", program, "--file", str(path)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        yield program, json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    args = arguments(__doc__, PROGRAMS, measure)
    for name, generate in FILES.items():
        with tempfile.TemporaryDirectory() as folder:
            path = generate(Path(folder), args.scale)
            print(f"{name}: {path.stat().st_size / 2**20:.0f} MiB")
            peer = None
            for program, row in measured(__file__, PROGRAMS, path):
                peer = peer or row
                print(
                    f"  {program:16} {row['images']:,} images: {row['seconds']:6.1f} s, "
                    f"{row['seconds'] / peer['seconds']:.2f} x; peak {row['peak']:5.2f} GiB, "
                    f"{row['peak'] / peer['peak']:.2f} x"
                )


if __name__ == "__main__":
    main()
