"""Checkpoints of both hosts as data: none of this runs code that a file brings along."""

import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from maskx_d2.data.class_names import first_difference

_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


def read_checkpoint(path: str | Path) -> dict:
    """
    What ``torch.save`` has written, on the CPU. Tensors are read from the disk when they are used.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint, or holds something else than tensors and plain values.
    """
    if "://" in str(path):
        raise ValueError(f"checkpoint {path} is an address, expected a file: download it")
    if not Path(path).is_file():
        raise FileNotFoundError(f"checkpoint {path} is no file")
    try:
        mapped = zipfile.is_zipfile(path)  # as PyTorch has written them since 1.6
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch.load lets through whatever a file that is none makes it stumble over
        found = _GLOBAL.search(str(error))
        reason = "it is nothing that PyTorch writes"
        if found is not None:
            reason = f"it holds {found[1]}, expected tensors and plain values: loading it could run code"
        raise ValueError(f"checkpoint {path} is refused: {reason}") from error
    if not isinstance(content, dict):
        raise ValueError(f"checkpoint {path} holds a {type(content).__name__}, expected a dictionary")
    return content


def check_state(path: str | Path, found: Mapping, expected: Mapping[str, Tensor]) -> None:
    """
    Args:
        path: where it comes from, for the error.
        found: a state dict.
        expected: one with the names and shapes that are expected.

    Raises:
        ValueError: a parameter is missing or of another shape: the first is named.
    """
    for name, value in expected.items():
        tensor = found.get(name)
        shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else "nothing"
        if shape != tuple(value.shape):
            raise ValueError(f"{path} has {shape} for {name}, expected {tuple(value.shape)}")


def check_classes(path: str | Path, found: Sequence[str], expected: Sequence[str]) -> None:
    """
    Args:
        path: of the checkpoint, for the error.
        found, expected: class names in the order of their contiguous indices.

    Raises:
        ValueError: a checkpoint is of other classes, or of the same in another order: the first difference
            is named.
    """
    if len(found) != len(expected):
        raise ValueError(f"checkpoint {path} knows {len(found)} classes, expected {len(expected)}")
    different = first_difference(found, expected)
    if different is not None:
        number, a, b = different
        raise ValueError(
            f"checkpoint {path} knows other classes: number {number + 1} is {a!r}, expected {b!r}"
        )
