"""``maskx check-dataset``: report everything that is wrong with a dataset."""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

from tqdm import tqdm

from maskx_d2.commands.options import add_input, add_max_megapixels, add_output_file
from maskx_d2.data.errors import InputError, MissingFileError
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
    check.add_argument(
        "--fix-crowd",
        action="store_true",
        help="set iscrowd to 0, for tools that export every RLE mask as a crowd region",
    )
    check.add_argument(
        "--drop-unused-categories", action="store_true", help="remove categories without annotations"
    )
    add_output_file(check, required=False, metavar="FIXED", help="repaired annotation file to write")
    check.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from maskx_d2.data.coco_file import read_json
    from maskx_d2.data.coco_remarks import find_problems
    from maskx_d2.data.dataset_check import find_image_problems, problem_report, use_report

    if not args.images.is_dir():
        raise MissingFileError(f"image folder {args.images} is not a folder")
    content = read_json(args.annotations)
    _fix(content, args)
    bar = partial(tqdm, total=len(content["images"]), unit="image", file=sys.stderr)
    of_images = find_image_problems(content, args.images, max_megapixels=args.max_megapixels, progress=bar)
    problems = [*find_problems(content), *of_images]
    counts = [f"{len(content[part]):,} {part}" for part in ("images", "annotations", "categories")]
    print(f"{args.annotations}: {', '.join(counts)}")
    print(problem_report(problems) or "No problems found.")
    if any(problem.is_error for problem in problems):
        print("Training and evaluation refuse this dataset because of the errors.")
        sys.exit(FOUND_ERRORS)
    print(use_report(content, args.annotations))


def _fix(content: dict, args: argparse.Namespace) -> None:
    from maskx_d2.data.coco_file import records_of
    from maskx_d2.data.dataset_fixes import drop_unused_categories, fix_crowd
    from maskx_d2.data.files import write_text

    fixes = args.fix_crowd or args.drop_unused_categories
    if fixes != (args.output is not None):
        raise InputError(
            "--fix-crowd and --drop-unused-categories need --output, and --output needs one of them"
        )
    if not fixes:
        return
    records_of(content, args.annotations)  # raises an error for a file that cannot be used
    if args.fix_crowd:
        print(f"set iscrowd to 0 in {fix_crowd(content):,} annotations")
    if args.drop_unused_categories:
        names = drop_unused_categories(content)
        print(f"removed {len(names):,} categories{': ' * bool(names)}{', '.join(map(repr, names))}")
    write_text(args.output, json.dumps(content))
    print(f"wrote {args.output}")
