"""``maskx compare``: a report on several runs."""

import argparse
from pathlib import Path

from maskx_d2.commands.options import (
    add_input,
    add_max_megapixels,
    add_output_folder,
    at_least,
    from_0_to_1,
)
from maskx_d2.data.errors import InputError
from maskx_d2.runtime.optional_packages import REPORTS, need


def add_parser(commands: argparse._SubParsersAction) -> None:
    compare = commands.add_parser(
        "compare",
        help="compare several runs in a report",
        description="Compare runs of either backend that were evaluated on the same data and split. Writes "
        "comparison.html and comparison.md: AP on A, on B, on all classes and per class, training "
        "curves, and the masks of each run on the same images.",
    )
    add_input(compare, "runs", nargs="*", type=Path, metavar="RUN_DIR", help="output folder of a run")
    add_input(
        compare,
        "--group",
        action="append",
        default=[],
        type=_group,
        metavar="NAME=RUN_DIR,RUN_DIR,...",
        help="compare groups of runs that differ only in their seed: mean, standard deviation, and paired "
        "differences. Repeat the option for each group",
    )
    add_input(
        compare,
        "--baseline",
        metavar="RUN_DIR",
        help="run, or NAME of a group, that the others are compared with; default: the first",
    )
    add_output_folder(
        compare,
        *("comparison.md", "comparison.html"),
        default=Path("output/comparison"),
        help="default: output/comparison",
    )
    add_input(
        compare,
        "--images-root",
        type=Path,
        metavar="DIR",
        help="folder of the images, if they have moved since the evaluation",
    )
    compare.add_argument(
        "--images", type=at_least(0), default=8, metavar="N", help="number of images to show, default 8"
    )
    compare.add_argument(
        "--min-score", type=from_0_to_1, default=0.5, metavar="P", help="lowest score to draw, default 0.5"
    )
    add_max_megapixels(compare)
    compare.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    need("maskx compare", *REPORTS)
    from maskx_d2.data.files import write_text
    from maskx_d2.evaluation.comparison import compare_groups, compare_runs, markdown_report
    from maskx_d2.evaluation.report import html_report

    if args.images_root is not None and not args.images_root.is_dir():
        raise InputError(f"--images-root {args.images_root} is not a folder")
    if bool(args.runs) == bool(args.group):
        raise InputError("give either runs or groups of runs (--group)")
    if args.group:
        names = [name for name, _ in args.group]
        if len(set(names)) < len(names):
            raise InputError(f"--group is given twice with one of the names {', '.join(names)}")
        comparison = compare_groups(dict(args.group), baseline=args.baseline)
    else:
        comparison = compare_runs(args.runs, baseline=args.baseline and Path(args.baseline))
    markdown = markdown_report(comparison)
    html = html_report(
        comparison,
        num_images=args.images,
        min_score=args.min_score,
        max_megapixels=args.max_megapixels,
        images_root=args.images_root,
    )
    write_text(args.output / "comparison.md", markdown)
    write_text(args.output / "comparison.html", html)
    print(markdown)
    print(f"{args.output / 'comparison.html'}")


def _group(text: str) -> tuple[str, list[Path]]:
    """Parse ``NAME=RUN_DIR,RUN_DIR,...``."""
    name, _, folders = text.partition("=")
    if not name or not all(folders.split(",")):
        raise argparse.ArgumentTypeError(f"{text} is not NAME=RUN_DIR,RUN_DIR,...")
    return name, [Path(folder) for folder in folders.split(",")]
