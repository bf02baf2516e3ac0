"""Timing functions in turn, so that what else the machine does meets all of them."""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping

import torch


def seconds(function: Callable, device: torch.device | str = "cpu") -> float:
    """How long one call takes."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def medians(
    functions: Mapping[str, Callable],
    repeats: int,
    *,
    device: torch.device | str = "cpu",
    warm_up: bool = False,
) -> dict[str, float]:
    """
    Median seconds of each function, called in turn, each time with random numbers of its own.

    Args:
        functions: by name.
        repeats: calls of each.
        device: that they run on.
        warm_up: whether each is called once more before, without being counted.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(-warm_up, repeats):
        for name, function in functions.items():
            torch.manual_seed(repeat + 1)
            elapsed = seconds(function, device)
            if repeat >= 0:
                times[name].append(elapsed)
    return {name: statistics.median(of_function) for name, of_function in times.items()}


def argument_parser(description: str, *, repeats: int) -> argparse.ArgumentParser:
    """Of a benchmark that may run on a GPU: ``--repeats`` and ``--device``, a GPU's if there is one."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument(
        "--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu"
    )
    return parser


def setting(device: torch.device) -> str:
    """What a benchmark runs on."""
    return f"on {device}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def batch_arguments(description: str, *, side: int) -> argparse.Namespace:
    """The options of benchmarks on a batch of images, and a line that says what they are."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--side", type=int, default=side, help="of the images, in pixels")
    parser.add_argument("--images", type=int, default=2, help="in a step")
    parser.add_argument("--objects", type=int, default=8, help="in an image")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    print(
        f"{args.images} images of {args.side} x {args.side} with {args.objects} objects each, CPU, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    return args
