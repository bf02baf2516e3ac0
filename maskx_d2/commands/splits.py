"""``maskx splits``: print which classes have masks in a split."""

import argparse
from pathlib import Path

from maskx_d2.commands.options import add_input


def add_parser(commands: argparse._SubParsersAction) -> None:
    splits = commands.add_parser(
        "splits",
        help="print which classes have masks in a split",
        description="Print the classes with and without masks in a split. With an annotation file, use its "
        "classes and count their instances.",
    )
    add_input(splits, "split", metavar="NAME", help="voc, nonvoc, coco, E1_A20B60 ..., or a file")
    add_input(
        splits, "annotations", nargs="?", type=Path, metavar="JSON", help="annotation file in COCO format"
    )
    splits.add_argument("--json", action="store_true", help="print JSON")
    splits.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from maskx_d2.data.class_splits import class_split_report
    from maskx_d2.data.pycocotools_coco import read_coco

    coco = None if args.annotations is None else read_coco(args.annotations)
    print(class_split_report(args.split, coco, as_json=args.json))
