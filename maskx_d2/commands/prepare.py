"""``maskx prepare``: convert or generate a dataset in COCO format."""

import argparse
import sys
from functools import partial
from pathlib import Path

from tqdm import tqdm

from maskx_d2.commands.options import add_input, add_output_folder, at_least
from maskx_d2.data.errors import InputError
from maskx_d2.runtime.optional_packages import need


def add_parser(commands: argparse._SubParsersAction) -> None:
    prepare = commands.add_parser("prepare", help="convert or generate a dataset in COCO format")
    datasets = prepare.add_subparsers(dest="dataset", required=True, metavar="DATASET")
    vg3k = datasets.add_parser(
        "vg3k",
        help="Visual Genome",
        description="Write vg3k_train.json, vg3k_val.json and vg3k_test.json: boxes of the most frequent "
        "classes of Visual Genome, in one class list with COCO's 80.",
    )
    genome = {"required": True, "type": Path, "metavar": "FILE"}
    add_input(vg3k, "--image-data", help="image_data.json", **genome)
    add_input(vg3k, "--objects", help="objects.json, v1.4", **genome)
    add_input(vg3k, "--coco-val", help="COCO's instances_val2017.json", **genome)
    add_output_folder(vg3k, "vg3k_train.json", "vg3k_val.json", "vg3k_test.json")
    vg3k.add_argument("--num-classes", type=at_least(1), default=3000, metavar="N", help="default 3000")
    vg3k.set_defaults(run=run_vg3k)

    voc = datasets.add_parser(
        "voc",
        help="PASCAL VOC",
        description="Write voc_val.json, the images of the segmentation task's val with masks, and "
        "voc_train.json, all other images of trainval: boxes of all objects, and masks of the images that "
        "have them.",
    )
    add_input(voc, "folder", type=Path, metavar="VOC2012", help="folder of PASCAL VOC as it is downloaded")
    add_output_folder(voc, "voc_train.json", "voc_val.json")
    voc.set_defaults(run=run_voc)

    shapes = datasets.add_parser(
        "shapes",
        help="generate the synthetic demo dataset",
        description="Generate the demo dataset: outlined shapes of 32 classes. The training annotations "
        "have boxes of all classes and masks of the 24 in classes_with_masks.txt.",
    )
    add_output_folder(shapes, "*/*", help="new or empty folder")
    shapes.add_argument(
        "--train", type=at_least(1), default=300, metavar="N", help="number of training images, default 300"
    )
    shapes.add_argument(
        "--test", type=at_least(1), default=60, metavar="N", help="number of test images, default 60"
    )
    shapes.add_argument("--seed", type=at_least(0), default=0, metavar="N")
    shapes.set_defaults(run=run_shapes)


def run_vg3k(args: argparse.Namespace) -> None:
    from maskx_d2.data.visual_genome import convert_visual_genome

    summary = convert_visual_genome(
        args.image_data,
        args.objects,
        args.coco_val,
        args.output,
        num_classes=args.num_classes,
        progress=lambda iterable, title, total: tqdm(
            iterable, desc=title, total=total, unit="image", file=sys.stderr
        ),
    )
    print(summary)


def run_voc(args: argparse.Namespace) -> None:
    need("maskx prepare voc", "defusedxml")
    from maskx_d2.data.pascal_voc import convert_pascal_voc

    progress = partial(tqdm, unit="image", file=sys.stderr)
    print(convert_pascal_voc(args.folder, args.output, progress=progress))


def run_shapes(args: argparse.Namespace) -> None:
    from maskx_d2.demo import shapes
    from maskx_d2.runtime.lock import is_empty

    if not is_empty(args.output):
        raise InputError(f"--output {args.output} already exists, expected a new or an empty folder")
    dataset = shapes.generate(
        args.output,
        num_train=args.train,
        num_test=args.test,
        seed=args.seed,
        progress=partial(tqdm, unit="image", file=sys.stderr),
    )
    print(f"to train on:    {dataset.train_json} {dataset.train_images}")
    print(f"to evaluate on: {dataset.test_json} {dataset.test_images}")
