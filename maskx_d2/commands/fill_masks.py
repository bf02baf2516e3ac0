"""``maskx fill-masks``: masks for annotations that have a box only."""

import argparse
import sys
from functools import partial
from pathlib import Path

from tqdm import tqdm

from maskx_d2.commands.models import exit_if_skipped, identity, load, refuse_addresses
from maskx_d2.commands.options import (
    add_batch_size,
    add_input,
    add_max_megapixels,
    add_model_options,
    add_output_file,
    add_overrides,
    add_ray,
    from_0_to_1,
)
from maskx_d2.runtime.optional_packages import need_ray


def add_parser(commands: argparse._SubParsersAction) -> None:
    fill = commands.add_parser(
        "fill-masks",
        help="masks for annotations that have a box only",
        description="Predict a mask for every annotation that has none, in its box and for its class. All "
        "else in the file stays as it is. Killed and started again it goes on where it was.",
    )
    add_input(fill, "annotations", type=Path, metavar="JSON", help="in COCO's format")
    add_input(fill, "images", metavar="IMAGES", help="the folder of its images")
    add_model_options(fill)
    add_ray(fill, "IMAGES may be an address as s3://bucket/folder")
    add_output_file(fill, metavar="JSON")
    fill.add_argument("--format", choices=("rle", "polygon"), default="rle", help="default rle")
    fill.add_argument(
        "--min-mask-score",
        type=from_0_to_1,
        default=0.0,
        metavar="P",
        help="leave annotations whose mask has a lower score as they are; default 0",
    )
    fill.add_argument(
        "--also-replace",
        action="store_true",
        help="predict for annotations that have masks too, and print how well both agree",
    )
    add_batch_size(fill, default=4)
    add_max_megapixels(fill)
    add_overrides(fill)
    fill.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from maskx_d2.inference.fill_masks import fill_masks, summary

    if args.ray is None:
        from maskx_d2.inference.masks_in_boxes import find_masks

        refuse_addresses(args.images)
        bar = partial(tqdm, unit="image", file=sys.stderr)
        find = partial(find_masks, progress=bar)
    else:
        need_ray("maskx fill-masks --ray")
        from maskx_d2.inference.ray_data import find_masks_on_ray

        find = partial(find_masks_on_ray, address=args.ray)
    detector = load(args)
    filled = fill_masks(
        detector,
        args.annotations,
        args.images,
        args.output,
        model=identity(args),
        form=args.format,
        min_score=args.min_mask_score,
        also_replace=args.also_replace,
        find_masks=partial(find, batch_size=args.batch_size, max_megapixels=args.max_megapixels),
    )
    print(f"{args.output}: {summary(filled, detector.style)}")
    exit_if_skipped(filled.passed_over)
