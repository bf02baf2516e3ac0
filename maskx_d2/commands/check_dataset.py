"""``maskx check-dataset``: report everything that is wrong with a dataset."""

import argparse
import sys
from functools import partial
from pathlib import Path

from tqdm import tqdm

from maskx_d2.commands.options import add_input, add_max_megapixels
from maskx_d2.data.errors import MissingFileError
from maskx_d2.runtime.exit_status import FOUND_ERRORS


def add_parser(commands: argparse._SubParsersAction) -> None:
    check = commands.add_parser(
        "check-dataset",
        help="check a dataset before a long run",
        description="Report everything in a COCO dataset that training or evaluation would fail on "
        "(errors, exit status 1) or handle in a special way (remarks).",
    )
    add_input(check, "annotations", type=Path, metavar="JSON", help="annotation file in COCO format")
    add_input(check, "images", type=Path, metavar="IMAGES", help="folder of its images")
    add_max_megapixels(check)
    check.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from maskx_d2.data.coco_file import read_json
    from maskx_d2.data.coco_format import find_problems
    from maskx_d2.data.dataset_check import find_image_problems, problem_report

    if not args.images.is_dir():
        raise MissingFileError(f"image folder {args.images} is not a folder")
    content = read_json(args.annotations)
    bar = partial(tqdm, total=len(content["images"]), unit="image", file=sys.stderr)
    of_images = find_image_problems(content, args.images, max_megapixels=args.max_megapixels, progress=bar)
    problems = [*find_problems(content), *of_images]
    counts = [f"{len(content[part]):,} {part}" for part in ("images", "annotations", "categories")]
    print(f"{args.annotations}: {', '.join(counts)}")
    print(problem_report(problems) or "No problems found.")
    if any(problem.is_error for problem in problems):
        sys.exit(FOUND_ERRORS)
