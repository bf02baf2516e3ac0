"""The ``maskx`` command."""

import argparse
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from tqdm import tqdm

_INSTALL_DETECTRON2 = (
    "pip install --no-build-isolation 'detectron2 @ git+https://github.com/facebookresearch/"
    "detectron2.git@02b5c4e295e990042a714712c21dc79b731e8833'"
)


def main(arguments: list[str] | None = None) -> None:
    """Run a subcommand; a user's mistake ends with one sentence and exit status 2."""
    args = _parser().parse_args(arguments)
    if find_spec("detectron2") is None:
        _fail(f"maskx {args.command} needs Detectron2, which is not installed: {_INSTALL_DETECTRON2}")
    try:
        args.run(args)
    except (ValueError, FileNotFoundError) as error:
        if args.traceback:
            raise
        _fail(str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="maskx", description="Mask^X R-CNN: masks for many classes from masks of few."
    )
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        help="train and compare on a generated dataset, in minutes on a CPU",
        description="Generate a dataset with more classes than masks, train a class-agnostic mask head and "
        "Mask^X, and compare them on classes without masks.",
    )
    demo.add_argument("--output", type=Path, default=Path("output/demo"), metavar="DIR")
    demo.add_argument("--seed", type=int, default=0, metavar="N", help="of data and training")
    demo.add_argument("--quick", action="store_true", help="less data and training, in 2 minutes")
    demo.set_defaults(run=_demo)

    predict = commands.add_parser(
        "predict",
        help="masks, names and scores on images",
        description="Detect on images, draw what is found, and write it as COCO results. Orange classes "
        "were trained with masks, blue ones with boxes only.",
    )
    predict.add_argument("--config-file", required=True, metavar="FILE", help="config of the model")
    predict.add_argument("--weights", required=True, metavar="FILE", help="checkpoint of the model")
    predict.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image file or folder")
    predict.add_argument("--output", required=True, type=Path, metavar="DIR")
    predict.add_argument("--min-score", type=float, default=0.5, metavar="P", help="default 0.5")
    predict.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config keys to override"
    )
    predict.set_defaults(run=_predict)
    return parser


def _demo(args: argparse.Namespace) -> None:
    from maskx_d2.hosts.detectron2 import demo

    schedule = demo.QUICK if args.quick else demo.FULL
    demo.run_demo(args.output, seed=args.seed, schedule=schedule)


def _predict(args: argparse.Namespace) -> None:
    from maskx_d2.hosts.detectron2.command_line import read_config
    from maskx_d2.hosts.detectron2.predict import find_images, predict
    from maskx_d2.hosts.detectron2.progress import log_to_file

    images = find_images(args.images)
    if "://" not in args.weights and not Path(args.weights).is_file():
        raise FileNotFoundError(f"--weights {args.weights} is no file")
    cfg = read_config(args.config_file, [*args.opts, "MODEL.WEIGHTS", args.weights])
    with log_to_file(args.output / "log.txt"):
        bar = partial(tqdm, unit="image", file=sys.stderr)
        results = predict(cfg, images, args.output, min_score=args.min_score, progress=bar)
    print(f"{len(images)} pictures in {args.output}, results in COCO format in {results}")


def _fail(message: str) -> None:
    print(f"maskx: {message}", file=sys.stderr)
    sys.exit(2)
