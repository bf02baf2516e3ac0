#!/usr/bin/env python3
"""
Reading Visual Genome's objects by several JSON parsers: why the converter uses msgspec.

Generated files in the layout of the real ones. Times are ratios to Python's own json, peaks of memory those
of a process for each, imports included. orjson and ijson are left out where they are not installed.
"""

import argparse
import json
import mmap
import resource
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from visual_genome import generate


def by_json(path: Path) -> int:
    with path.open() as file:
        return sum(len(image["objects"]) for image in json.load(file))


def by_orjson(path: Path) -> int:
    import orjson

    return sum(len(image["objects"]) for image in orjson.loads(path.read_bytes()))


def by_ijson(path: Path) -> int:
    import ijson

    with path.open("rb") as file:
        return sum(len(image["objects"]) for image in ijson.items(file, "item", use_float=True))


def by_msgspec(path: Path) -> int:
    """As the converter does: into records of the fields that it needs, an image at a time."""
    import msgspec

    from maskx_d2.data.visual_genome import _ImageObjects

    decoder = msgspec.json.Decoder(_ImageObjects)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        images = msgspec.json.decode(content, type=list[msgspec.Raw])
        total = sum(len(decoder.decode(image).objects) for image in images)
        del images
    return total


PARSERS = {"json": by_json, "orjson": by_orjson, "ijson": by_ijson, "msgspec": by_msgspec}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--parser", choices=PARSERS, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.parser:
        start = time.perf_counter()
        count = PARSERS[args.parser](args.file)
        seconds = time.perf_counter() - start
        print(json.dumps([count, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20]))
        return
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder), args.images)
        path = Path(folder) / "objects.json"
        reference = None
        for name in PARSERS:
            if find_spec(name) is None:
                print(f"{name:8} is not installed")
                continue
            command = [sys.executable, __file__, "--parser", name, "--file", str(path)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            count, seconds, memory = json.loads(done.stdout)
            reference = reference or seconds
            print(
                f"{name:8} {count:,} objects: {seconds:6.2f} s, {seconds / reference:5.2f} x json; "
                f"peak {memory:5.2f} GiB"
            )


if __name__ == "__main__":
    main()
