"""``maskx convert``: convert the models of the paper's authors."""

import argparse
from pathlib import Path

from maskx_d2.commands.options import add_input, add_output_folder
from maskx_d2.runtime.optional_packages import need_detectron2


def add_parser(commands: argparse._SubParsersAction) -> None:
    convert = commands.add_parser(
        "convert",
        help="convert the models of the paper's authors",
        description="Convert a checkpoint of seg_every_thing, the paper's Caffe2 code, to "
        "model_final.pth and config.yaml for maskx predict. All sizes are read from the file.",
    )
    add_input(convert, "checkpoint", type=Path, metavar="FILE", help="the .pkl")
    add_output_folder(convert, "config.yaml", "model_final.pth", "classes.json")
    add_input(
        convert,
        "--classes",
        type=Path,
        metavar="FILE",
        help="class list, for a model with neither the 3,001 classes of Visual Genome nor COCO's 80",
    )
    add_input(
        convert,
        "--classes-with-masks",
        metavar="SPLIT",
        help="split that the model was trained with: voc, nonvoc, ..., or a file. Default: COCO's "
        "classes, or all classes with --classes",
    )
    convert.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    need_detectron2("maskx convert")
    from maskx_d2.backends.detectron2.seg_every_thing import convert_checkpoint

    config = convert_checkpoint(
        args.checkpoint,
        args.output,
        classes=args.classes,
        classes_with_masks=args.classes_with_masks,
    )
    weights = config.with_name("model_final.pth")
    print(f"maskx predict --config-file {config} --weights {weights} --output output/predictions IMAGE")
