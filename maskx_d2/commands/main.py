"""The ``maskx`` command. Each subcommand is a module beside this one."""

import argparse
import sys
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from PIL import Image

from maskx_d2 import __version__
from maskx_d2.commands import (
    app,
    check_dataset,
    compare,
    convert,
    cross_validate,
    demo,
    detectron2,
    embeddings,
    fill_masks,
    predict,
    prepare,
    splits,
    torchvision,
)
from maskx_d2.runtime.exit_status import one_sentence

_COMMANDS = (
    *(demo, predict, app, cross_validate, fill_masks, convert, prepare),
    *(compare, check_dataset, splits, embeddings, torchvision, detectron2),
)
_WITH_OPTIONS_OF_THEIR_OWN = {"torchvision": torchvision, "detectron2": detectron2}


def main(arguments: list[str] | None = None) -> None:
    """
    Run a subcommand. The exit status is 1 for broken data, 2 for a mistake of the user, 3 for an unexpected
    error, and 128 + the signal number for a signal; see :mod:`maskx_d2.runtime.exit_status`.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    show_traceback = arguments[:1] == ["--traceback"]
    command, *rest = arguments[show_traceback:] or [None]
    if command in _WITH_OPTIONS_OF_THEIR_OWN:
        args = argparse.Namespace(run=_WITH_OPTIONS_OF_THEIR_OWN[command].run, arguments=rest)
    else:
        args = _parser().parse_args(arguments)
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # our own limit is lower
    with one_sentence("maskx", show_traceback=show_traceback), _writing(args):
        args.run(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="maskx",
        description="Mask^X R-CNN: predict masks for all classes after training with masks of some.",
    )
    parser.add_argument("--version", action="version", version=f"maskx_d2 {__version__}")
    parser.add_argument("--traceback", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add_parser(commands)
    return parser


def _writing(args: argparse.Namespace) -> AbstractContextManager[None]:
    """Check and lock the output of a command; see :func:`maskx_d2.runtime.outputs.writing`."""
    from maskx_d2.commands.options import beside
    from maskx_d2.data.addresses import is_address
    from maskx_d2.runtime.outputs import OutputFile, OutputFolder, named_files, writing

    if not hasattr(args, "written") or args.output is None or is_address(args.output):
        return nullcontext()
    inputs = [getattr(args, dest) for dest in args.inputs] if hasattr(args, "inputs") else []
    path = Path(args.output)
    if args.written:
        return writing([OutputFolder(path, args.written)], named_files(inputs))
    files = [path, *(beside(path, ending) for ending in args.written_beside)]
    return writing(map(OutputFile, files), named_files(inputs))
