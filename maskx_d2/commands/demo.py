"""``maskx demo``: train and compare on a generated dataset."""

import argparse
import sys
from importlib import import_module

from maskx_d2.commands.options import DEMO_FOLDER, add_output_folder, at_least
from maskx_d2.runtime.optional_packages import (
    REPORTS,
    TORCHVISION_TRAINING,
    has_detectron2,
    need,
    need_detectron2,
)

BACKENDS = ("detectron2", "torchvision")


def add_parser(commands: argparse._SubParsersAction) -> None:
    demo = commands.add_parser(
        "demo",
        help="train and compare models on a generated dataset, in minutes on a CPU",
        description="Generate a dataset in which some classes have no masks, and train four mask heads on "
        "one detector: class-agnostic, Mask^X, Mask^X with box supervision, and an oracle with all masks. "
        "Compare them on the classes without masks.",
    )
    add_output_folder(demo, "*/*", default=DEMO_FOLDER)
    demo.add_argument(
        "--seed",
        type=at_least(0),
        default=0,
        metavar="N",
        help="random seed of the data and the training, default 0",
    )
    demo.add_argument(
        "--seeds",
        type=at_least(1),
        default=1,
        metavar="N",
        help="run N seeds, starting from --seed, and print mean and standard deviation",
    )
    demo.add_argument(
        "--quick", action="store_true", help="use less data and training; takes 2 to 3 minutes"
    )
    demo.add_argument(
        "--paper",
        action="store_true",
        help="also train Mask^X as in the paper: cls+box embeddings, no dropout",
    )
    demo.add_argument(
        "--backend",
        choices=BACKENDS,
        help="default: Detectron2 if it is installed, otherwise torchvision",
    )
    demo.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    if args.backend == "detectron2":
        need_detectron2("maskx demo --backend detectron2")
    backend = args.backend or ("detectron2" if has_detectron2() else "torchvision")
    need("maskx demo", *REPORTS, *(TORCHVISION_TRAINING if backend == "torchvision" else ()))
    from maskx_d2.demo import run as demo

    print(f"Training with {backend}.", file=sys.stderr)
    demo.run_demo(
        args.output,
        backend=import_module(f"maskx_d2.demo.on_{backend}"),
        seeds=range(args.seed, args.seed + args.seeds),
        schedule=demo.QUICK if args.quick else demo.FULL,
        paper=args.paper,
    )
