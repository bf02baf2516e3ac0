"""``maskx demo``: train and compare on a generated dataset."""

import argparse
import sys
from importlib import import_module

from maskx_d2.commands.options import DEMO_FOLDER, add_output_folder, at_least
from maskx_d2.runtime.optional_packages import has_detectron2, need_detectron2

BACKENDS = ("detectron2", "torchvision")


def add_parser(commands: argparse._SubParsersAction) -> None:
    demo = commands.add_parser(
        "demo",
        help="train and compare on a generated dataset, in minutes on a CPU",
        description="Generate a dataset with more classes than masks, train on one detector a "
        "class-agnostic mask head, Mask^X, Mask^X with box supervision and an oracle that has all masks, "
        "and compare them on classes without masks.",
    )
    add_output_folder(demo, "*/*", default=DEMO_FOLDER)
    demo.add_argument("--seed", type=at_least(0), default=0, metavar="N", help="of data and training")
    demo.add_argument(
        "--seeds",
        type=at_least(1),
        default=1,
        metavar="N",
        help="repeat it with N seeds, from --seed on, and print mean and standard deviation",
    )
    demo.add_argument("--quick", action="store_true", help="less data and training, in 2 to 3 minutes")
    demo.add_argument(
        "--paper",
        action="store_true",
        help="train Mask^X as the paper has it, too: cls+box embeddings, no dropout",
    )
    demo.add_argument(
        "--backend",
        choices=BACKENDS,
        help="what to train with; Detectron2 where it is installed, else torchvision",
    )
    demo.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from maskx_d2.demo import run as demo

    if args.backend == "detectron2":
        need_detectron2("maskx demo --backend detectron2")
    backend = args.backend or ("detectron2" if has_detectron2() else "torchvision")
    print(f"Training with {backend}.", file=sys.stderr)
    demo.run_demo(
        args.output,
        backend=import_module(f"maskx_d2.demo.on_{backend}"),
        seeds=range(args.seed, args.seed + args.seeds),
        schedule=demo.QUICK if args.quick else demo.FULL,
        paper=args.paper,
    )
