"""``maskx fill-masks``: predict masks for annotations that have only a box."""

import argparse
import sys
from functools import partial
from pathlib import Path

from tqdm import tqdm

from maskx_d2.commands.models import exit_if_skipped, identity, load, refuse_addresses, say_above
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
from maskx_d2.runtime.optional_packages import need


def add_parser(commands: argparse._SubParsersAction) -> None:
    fill = commands.add_parser(
        "fill-masks",
        help="predict masks for annotations that have only a box",
        description="Predict a mask for every annotation that has none, in its box and for its class. "
        "Everything else in the file stays as it is. An interrupted run continues when the "
        "command is repeated.",
    )
    add_input(fill, "annotations", type=Path, metavar="JSON", help="annotation file in COCO format")
    add_input(fill, "images", metavar="IMAGES", help="folder of its images")
    add_model_options(fill)
    add_ray(fill, "IMAGES can be a URL such as s3://bucket/folder")
    add_output_file(fill, metavar="JSON")
    fill.add_argument(
        "--format", choices=("rle", "polygon"), default="rle", help="format of the new masks, default rle"
    )
    fill.add_argument(
        "--min-mask-score",
        type=from_0_to_1,
        default=0.0,
        metavar="P",
        help="leave annotations without a mask if its score would be lower, default 0",
    )
    fill.add_argument(
        "--also-replace",
        action="store_true",
        help="also replace masks that exist, and print how well they agree with the predicted ones",
    )
    fill.add_argument(
        "--replace-rectangles",
        action="store_true",
        help="also replace the masks of classes all of whose masks are rectangles, such as boxes that were "
        "exported as polygons",
    )
    add_batch_size(fill, default=4)
    add_max_megapixels(fill)
    add_overrides(fill)
    fill.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    need("maskx fill-masks", "contourpy")
    from maskx_d2.inference.fill_masks import fill_masks, summary

    if args.ray is None:
        from maskx_d2.inference.masks_in_boxes import find_masks

        refuse_addresses(args.images)
        bar = partial(tqdm, unit="image", file=sys.stderr)
        find = partial(find_masks, progress=bar)
    else:
        need("maskx fill-masks --ray", "ray")
        from maskx_d2.inference.ray_data import find_masks_on_ray

        on_ray = tqdm(unit="image", file=sys.stderr, disable=None)
        waiting = partial(say_above, on_ray)
        find = partial(find_masks_on_ray, address=args.ray, progress=on_ray.update, waiting=waiting)
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
        replace_rectangles=args.replace_rectangles,
        find_masks=partial(find, batch_size=args.batch_size, max_megapixels=args.max_megapixels),
    )
    print(f"{args.output}: {summary(filled, detector.style)}")
    exit_if_skipped(filled.passed_over)
