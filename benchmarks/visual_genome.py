#!/usr/bin/env python3
"""
Time and peak memory of `maskx prepare vg3k`, against a plain program that does the same work with
json.load, dictionaries and json.dump.

Both convert the same generated files in the layout and size of Visual Genome's (108,077 images, 3.8
million objects, 0.5 GB), each in a process of its own; what they write is compared.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from maskx_d2.data.class_names import coco_class_names
from maskx_d2.data.visual_genome import NUM_TEST_IMAGES, SPLITS, convert_visual_genome

sys.path.append(str(Path(__file__).resolve().parents[1]))
from tests.data.plain_visual_genome import EXCEPTIONS, plainly

URL = "https://cs.stanford.edu/people/rak248/VG_100K_2/{}.jpg"


def generate(folder: Path, num_images: int) -> None:
    """Synsets as unevenly frequent as real ones; 35 objects an image; half of the images are in COCO."""
    rng = random.Random(0)
    names = [n.replace(" ", "_") + ".n.01" for n in coco_class_names() if n not in EXCEPTIONS]
    synsets = names + [s for s in EXCEPTIONS.values() if s != "hand_blower.n.01"]
    synsets += [f"object_{i}.n.0{1 + i % 3}" for i in range(8000 - len(synsets))]
    weights = [1 / (10 + i) for i in range(len(synsets))]
    images = [
        {
            "width": 800, "url": URL.format(i), "height": 600, "image_id": i,
            "coco_id": 3 * i if i % 2 else None, "flickr_id": i * 11,
        }
        for i in range(1, num_images + 1)
    ]  # fmt: skip
    (folder / "image_data.json").write_text(json.dumps(images))
    identifier = 1_000_000
    with (folder / "objects.json").open("w") as file:
        for i in range(1, num_images + 1):
            count = rng.randint(20, 50)
            of_image = []
            for synset, size in zip(
                rng.choices(synsets, weights, k=count), rng.choices(range(1, 300), k=count), strict=True
            ):
                identifier += 1
                number = identifier % 40
                found = [synset, "part.n.01"] if number == 0 else [] if number == 1 else [synset]
                of_image.append(
                    {
                        "synsets": found, "h": size, "object_id": identifier, "merged_object_ids": [],
                        "names": [synset[:-5]], "w": 300 - size, "y": size, "x": 2 * size,
                    }
                )  # fmt: skip
            record = {"image_id": i, "objects": of_image, "image_url": URL.format(i)}
            file.write(("[" if i == 1 else ", ") + json.dumps(record))
        file.write("]")
    val = {"images": [{"id": 3 * i} for i in range(1, num_images, 40)], "annotations": []}
    (folder / "instances_val2017.json").write_text(json.dumps(val))


def plain(folder: Path, output: Path) -> None:
    contents = plainly(
        folder / "image_data.json",
        folder / "objects.json",
        folder / "instances_val2017.json",
        num_classes=3000,
        num_test=NUM_TEST_IMAGES,
    )
    output.mkdir(exist_ok=True)
    for split, content in contents.items():
        with open(output / f"vg3k_{split}.json", "w") as file:
            json.dump(content, file)


def ours(folder: Path, output: Path) -> None:
    convert_visual_genome(
        folder / "image_data.json", folder / "objects.json", folder / "instances_val2017.json", output
    )


PROGRAMS = {"plain": plain, "maskx prepare vg3k": ours}


def measure(name: str, folder: Path, output: Path) -> tuple[float, float]:
    """Seconds and peak GiB of a program in a process of its own."""
    command = [
        sys.executable,
        __file__,
        "--program",
        name,
        "--folder",
        str(folder),
        "--output",
        str(output),
    ]
    start = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return time.perf_counter() - start, int(done.stdout) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=108_077)
    parser.add_argument("--program", choices=PROGRAMS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.program:
        PROGRAMS[args.program](args.folder, args.output)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        generate(root, args.images)
        size = (root / "objects.json").stat().st_size / 2**20
        print(f"{args.images:,} images, objects.json of {size:.0f} MiB")
        results = {name: measure(name, root, root / name.split()[0]) for name in PROGRAMS}
        for name, (seconds, memory) in results.items():
            time_ratio, memory_ratio = seconds / results["plain"][0], memory / results["plain"][1]
            print(
                f"{name:18}: {seconds:6.1f} s, peak {memory:5.2f} GiB, {time_ratio:.2f} x the time, "
                f"{memory_ratio:.2f} x the memory of plain"
            )
        for split in SPLITS:
            contents = [
                json.loads((root / n.split()[0] / f"vg3k_{split}.json").read_text()) for n in PROGRAMS
            ]
            print(f"{split}: {len(contents[0]['annotations']):,} boxes, same: {contents[0] == contents[1]}")


if __name__ == "__main__":
    main()
