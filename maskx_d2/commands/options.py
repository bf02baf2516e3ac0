"""Options shared by several commands, and their argument types."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from maskx_d2.data.images import MAX_MEGAPIXELS, PILLOWS_MEGAPIXELS

DEMO_FOLDER = Path("output/demo")
FULL_PRECISION = "fp32"


def add_input(parser: argparse.ArgumentParser, *names: str, **options) -> None:
    """Add an option that names an input: no output may replace it."""
    action = parser.add_argument(*names, **options)
    parser.set_defaults(inputs=[*(parser.get_default("inputs") or ()), action.dest])


def add_output_file(
    parser: argparse.ArgumentParser, *, required: bool = True, beside: Sequence[str] = (), **options
) -> None:
    """
    Add ``--output``, the only file that the command may write.

    Args:
        parser: parser of the command.
        required: whether the option is required.
        beside: endings of more files that it writes, see :func:`beside`.
        options: options of ``add_argument``.
    """
    parser.add_argument("--output", required=required, type=Path, **options)
    parser.set_defaults(written=(), written_beside=tuple(beside))


def beside(output: Path, ending: str) -> Path:
    """``folder/name.comparison.json`` for ``folder/name.json`` and the ending ``.comparison.json``."""
    return output.with_name(f"{output.stem}{ending}")


def add_output_folder(parser: argparse.ArgumentParser, *names: str, **options) -> None:
    """
    Add ``--output``, a folder.

    Args:
        parser: parser of the command.
        names: names of all files that the command writes there; see
            :class:`maskx_d2.runtime.outputs.OutputFolder`.
        options: options of ``add_argument``.
    """
    options = {"type": Path, "metavar": "DIR", "required": "default" not in options, **options}
    parser.add_argument("--output", **options)
    parser.set_defaults(written=names)


def add_model_options(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    add_input(
        parser,
        "--config-file",
        metavar="FILE",
        help="config of the model; not needed for a .ckpt of the torchvision backend",
    )
    add_input(parser, "--weights", required=required, metavar="FILE", help="checkpoint of the model")


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", metavar="DEVICE", help="default: a GPU if there is one, else cpu")
    parser.add_argument(
        "--precision",
        choices=(FULL_PRECISION, "bf16", "fp16"),
        default=FULL_PRECISION,
        help="of the model on a GPU, default fp32; half precision is faster, and changes some pixels",
    )


def add_batch_size(parser: argparse.ArgumentParser, *, default: int) -> None:
    parser.add_argument(
        "--batch-size",
        type=at_least(1),
        default=default,
        metavar="N",
        help=f"batch size, default {default}",
    )


def add_max_megapixels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-megapixels",
        type=megapixels,
        default=MAX_MEGAPIXELS,
        metavar="N",
        help=f"largest image to read, in megapixels; default {MAX_MEGAPIXELS:g}, at most "
        f"{PILLOWS_MEGAPIXELS:g}",
    )


def add_ray(parser: argparse.ArgumentParser, more: str) -> None:
    parser.add_argument(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help="run on the Ray cluster at ADDRESS (auto, or HOST:PORT); without ADDRESS, on all cores or "
        f"GPUs of this machine. {more}",
    )


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add ``--opts``. Must come last, because it takes all remaining arguments."""
    add_input(
        parser,
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="config keys to override; must come last",
    )


def at_least(least: int) -> Callable[[str], int]:
    """The argument type of a whole number that is at least ``least``."""

    def parse(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is less than {least}")
        return int(text)

    parse.__name__ = "whole number"
    return parse


def from_0_to_1(text: str) -> float:
    if not 0 <= float(text) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return float(text)


def megapixels(text: str) -> float:
    if not 0 < float(text) <= PILLOWS_MEGAPIXELS:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and {PILLOWS_MEGAPIXELS:g}")
    return float(text)
