"""``maskx fill-masks``: predict masks for annotations that have only a box."""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from maskx_d2.commands.models import (
    check_half_precision,
    exit_if_skipped,
    identity,
    load,
    refuse_addresses,
    say_above,
    usable_device,
)
from maskx_d2.commands.options import (
    add_batch_size,
    add_device,
    add_input,
    add_max_megapixels,
    add_model_options,
    add_output_file,
    add_overrides,
    add_ray,
    beside,
    from_0_to_1,
)
from maskx_d2.data.errors import InputError
from maskx_d2.runtime.optional_packages import need

if TYPE_CHECKING:
    from maskx_d2.inference.fill_masks import Filled
    from maskx_d2.teachers.promptable import PromptableModel

_COMPARISON = (".comparison.json", ".comparison.svg")  # beside the output


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
    add_model_options(fill, required=False)
    add_input(
        fill,
        "--teacher",
        metavar="MODEL",
        help="a SAM, SAM 2 or SAM 3 model, in place of --weights or beside it: a folder that "
        "save_pretrained wrote, or a name on the Hugging Face Hub, such as facebook/sam2.1-hiera-large",
    )
    fill.add_argument(
        "--per-class-best",
        action="store_true",
        help="with --weights and --teacher, fill each class by the better of the two: on the masks that "
        "exist, else by their mask scores if cross-validate has calibrated those of --weights",
    )
    fill.add_argument(
        "--within-boxes",
        action="store_true",
        help="remove the pixels of a teacher's masks that are outside their boxes",
    )
    add_device(fill)
    add_ray(fill, "IMAGES can be a URL such as s3://bucket/folder")
    add_output_file(fill, metavar="JSON", beside=_COMPARISON)
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
        help="also replace masks that exist, and print how well they agree with the predicted ones. With "
        "--weights and --teacher, those of both, and write OUTPUT.comparison.json and .svg",
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
    _check_model_options(args)
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
    teacher = _teacher(args) if args.teacher else None
    model = load(args) if args.weights else None
    filled = fill_masks(
        model or teacher,
        args.annotations,
        args.images,
        args.output,
        model=_identity(args),
        teacher=teacher if model is not None else None,
        per_class_best=args.per_class_best,
        form=args.format,
        min_score=args.min_mask_score,
        also_replace=args.also_replace,
        replace_rectangles=args.replace_rectangles,
        find_masks=partial(find, batch_size=args.batch_size, max_megapixels=args.max_megapixels),
    )
    print(f"{args.output}: {summary(filled)}")
    if model is not None and teacher is not None:
        _write_comparison(filled, args.output)
    exit_if_skipped(filled.passed_over)


def _check_model_options(args: argparse.Namespace) -> None:
    if not args.weights and not args.teacher:
        raise InputError("expected --weights, --teacher, or both")
    if not args.weights and (args.config_file or args.opts):
        raise InputError("--config-file and --opts belong to --weights, which is missing")
    if not args.teacher and args.within_boxes:
        raise InputError("--within-boxes belongs to --teacher, which is missing")
    has_both = bool(args.weights and args.teacher)
    if args.per_class_best and not has_both:
        raise InputError("--per-class-best chooses between --weights and --teacher, expected both")
    if has_both and not args.per_class_best and not args.also_replace:
        raise InputError(
            "--weights and --teacher are given, expected --also-replace to compare them on the masks that "
            "exist, or --per-class-best to fill each class by the better one"
        )


def _teacher(args: argparse.Namespace) -> "PromptableModel":
    need("--teacher", "transformers")
    from maskx_d2.teachers.promptable import PromptableModel

    device = usable_device(args.device)
    check_half_precision(args)
    teacher = PromptableModel(args.teacher, precision=args.precision, within_boxes=args.within_boxes)
    return teacher.to(device)


def _identity(args: argparse.Namespace) -> list:
    of_model = identity(args) if args.weights else []
    if not args.teacher:
        return of_model
    return [*of_model, "teacher", args.teacher, args.within_boxes, args.precision]


def _write_comparison(filled: "Filled", output: Path) -> None:
    need("a plot of the comparison", "matplotlib")
    from maskx_d2.data.files import write_json, write_text
    from maskx_d2.evaluation.plots import svg

    of_json, of_plot = (beside(output, suffix) for suffix in _COMPARISON)
    write_json(of_json, filled.comparison.as_dict(filled.choices))
    print(f"{of_json}: all figures")
    if filled.comparison.measured:
        write_text(of_plot, svg(filled.comparison.plot()))
        print(f"{of_plot}: the classes")
