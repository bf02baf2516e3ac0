"""Helpers shared by the commands that use a trained model."""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from maskx_d2.commands.options import FULL_PRECISION
from maskx_d2.data.errors import InputError
from maskx_d2.data.printable import printable
from maskx_d2.runtime.exit_status import FOUND_ERRORS


def load(args: argparse.Namespace):
    """The model that the arguments name, on their device and in their precision."""
    from maskx_d2.backends.load import load_detector

    device = None if args.device is None else usable_device(args.device)
    check_half_precision(args)
    detector = load_detector(args.weights, args.config_file, overrides=args.opts)
    if device is not None:
        detector.to(device)
    return detector.use_precision(args.precision)


def check_half_precision(args: argparse.Namespace) -> None:
    """
    Raises:
        InputError: half precision is asked for on a CPU. With Ray, its workers may have GPUs.
    """
    if args.precision != FULL_PRECISION and args.ray is None and usable_device(args.device) == "cpu":
        raise InputError(
            f"--precision is {args.precision} on a CPU, expected fp32: half precision is for GPUs"
        )


def identity(args: argparse.Namespace) -> list[str]:
    """What identifies the model that the arguments name, and its precision."""
    from maskx_d2.data.files import file_digest

    files = [path for path in (args.config_file, args.weights) if path and Path(path).is_file()]
    precision = [] if args.precision == FULL_PRECISION else [args.precision]
    return [args.weights, *(file_digest(Path(path)) for path in files), *args.opts, *precision]


def usable_device(name: str | None) -> str:
    """
    Args:
        name: of a torch device; None for a GPU if there is one, else the CPU.

    Raises:
        InputError: torch cannot use it.
    """
    import torch

    device = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # as torch raises without such a device
        raise InputError(f"--device is {device!r}, which torch cannot use: {error}") from error
    return device


def refuse_addresses(*paths: str) -> None:
    from maskx_d2.data.addresses import is_address

    for path in paths:
        if is_address(path):
            raise InputError(f"{path} is a URL, which needs --ray")


def say_above(bar: tqdm, sentence: str) -> None:
    """Print a sentence above a progress bar on standard error."""
    bar.write(f"maskx: {sentence}", file=sys.stderr)


def exit_if_skipped(failed: list[str]) -> None:
    """
    Args:
        failed: the reasons why images and videos could not be read.
    """
    if failed:
        files = "1 file" if len(failed) == 1 else f"{len(failed)} files"
        print(f"maskx: skipped {files}:", file=sys.stderr)
        for reason in failed:
            print(f"  {printable(reason)}", file=sys.stderr)
        sys.exit(FOUND_ERRORS)
