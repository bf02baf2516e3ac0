"""Reads checkpoints of both backends as data: no code in a file is run."""

import io
import math
import mmap
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from maskx_d2.data.class_names import first_difference
from maskx_d2.data.errors import InputError, MissingFileError
from maskx_d2.data.files import replacing
from maskx_d2.runtime.pickles import Pickle, RefusedPickle, StandIn

# Bytes per number in each kind of storage.
_STORAGES = {
    **{"ByteStorage": 1, "CharStorage": 1, "BoolStorage": 1, "UntypedStorage": 1},
    **{"ShortStorage": 2, "HalfStorage": 2, "BFloat16Storage": 2, "IntStorage": 4, "FloatStorage": 4},
    **{"LongStorage": 8, "DoubleStorage": 8, "ComplexFloatStorage": 8, "ComplexDoubleStorage": 16},
}
_TYPES = [name for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype)]
_PICKLES_BEFORE, _PICKLES = 3, 5  # before PyTorch 1.6; the fourth holds what was saved


def read_checkpoint(path: str | Path) -> dict:
    """
    Read what ``torch.save`` has written, on the CPU. Tensors are read from disk when they are used.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a checkpoint, holds something other than tensors and plain values, or asks for
            more memory than its size allows.
    """
    if "://" in str(path):
        raise InputError(f"checkpoint {path} is a URL, expected a file: download it")
    if not Path(path).is_file():
        raise MissingFileError(f"checkpoint {path} is not a file")
    try:
        is_zip = zipfile.is_zipfile(path)  # as PyTorch has written them since 1.6
        (_check_zip if is_zip else _check_pickles)(Path(path))
    except RefusedPickle as error:
        raise InputError(f"checkpoint {path} is refused: {error}") from error
    except Exception as error:  # anything the unpickler raises for a file that is not a checkpoint
        raise _no_checkpoint(path) from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:
        raise _no_checkpoint(path) from error
    if not isinstance(content, dict):
        raise InputError(f"checkpoint {path} holds a {type(content).__name__}, expected a dictionary")
    return content


def write_checkpoint(path: Path, content: dict) -> None:
    """Write what :func:`read_checkpoint` reads, completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.save(content, file)


def _no_checkpoint(path: str | Path) -> InputError:
    return InputError(f"checkpoint {path} is refused: it was not written by PyTorch")


def _check_zip(path: Path) -> None:
    """Check a file in the current format of ``torch.save``: a pickle, and a file for each storage."""
    with zipfile.ZipFile(path) as archive:
        records = {PurePosixPath(info.filename).name: info for info in archive.infolist()}
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise RefusedPickle("it is compressed, which PyTorch's files are not")
        names = [info.filename for info in archive.infolist()]
        pickles = [name for name in names if name.endswith("data.pkl")]
        if len(set(names)) < len(names) or len(pickles) != 1:
            raise RefusedPickle("it was not written by PyTorch")
        content = archive.read(pickles[0])
    pickle = Pickle(io.BytesIO(content), size=len(content))
    storages = _Storages(lambda key: records[key].file_size if key in records else 0)
    pickle.load(_stand_ins(pickle), load_storage=storages.load)


def _check_pickles(path: Path) -> None:
    """Check a file in the format before PyTorch 1.6: several pickles, followed by the storages."""
    size = path.stat().st_size
    if size == 0:
        raise RefusedPickle("it was not written by PyTorch")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        pickle = Pickle(content, size=size)
        storages = _Storages(lambda key: size)
        for number in range(_PICKLES):
            known = _stand_ins(pickle) if number == _PICKLES_BEFORE else pickle.plain_stand_ins()
            pickle.load(known, load_storage=storages.load)
        if sum(storages.num_bytes.values()) > size:
            raise RefusedPickle("it asks for more memory than its size allows")


class _Storage:
    __slots__ = ("num_values",)

    def __init__(self, num_values: int):
        self.num_values = num_values


class _Storages:
    """The storages that hold the numbers of tensors."""

    def __init__(self, most_bytes):
        """
        Args:
            most_bytes: returns the largest size of a storage in bytes, given its key.
        """
        self.num_bytes: dict[object, int] = {}
        self._most_bytes = most_bytes

    def load(self, pid: object) -> _Storage:
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
            raise RefusedPickle("it refers to something outside itself, expected storages of tensors")
        _, bytes_of_number, key, _, num_values = pid[:5]
        if type(bytes_of_number) is not int or type(num_values) is not int or not 0 <= num_values < 2**48:
            raise RefusedPickle("it has a storage of an unknown kind or size")
        self.num_bytes[key] = bytes_of_number * num_values
        if self.num_bytes[key] > self._most_bytes(key):
            raise RefusedPickle(
                f"it has a storage of {num_values:,} numbers, more than there are in the file"
            )
        return _Storage(num_values)


def _stand_ins(pickle: Pickle) -> dict[tuple[str, str], object]:
    """Stand-ins for the parts of tensors. No tensors are built here; only their sizes are checked."""
    return {
        **pickle.plain_stand_ins(),
        **{("torch", name): size for name, size in _STORAGES.items()},
        ("torch.storage", "UntypedStorage"): _STORAGES["UntypedStorage"],
        **{("torch", name): name for name in _TYPES},
        ("torch", "Size"): StandIn(tuple),
        ("torch", "device"): StandIn(lambda *parts: str(parts)[:80]),
        ("torch._utils", "_rebuild_tensor"): StandIn(_look_at_tensor),
        ("torch._utils", "_rebuild_tensor_v2"): StandIn(_look_at_tensor),
        ("torch._utils", "_rebuild_parameter"): StandIn(lambda *parts: None),
    }


def _look_at_tensor(storage: object, offset: object, size: object, *more: object) -> None:
    if not isinstance(storage, _Storage) or not isinstance(size, tuple):
        raise RefusedPickle("it has a tensor in an unknown form")
    if not all(type(n) is int and n >= 0 for n in size) or math.prod(size) > storage.num_values:
        raise RefusedPickle(
            f"it has a tensor of shape {str(size)[:80]}, more than the {storage.num_values:,} numbers in "
            "its storage"
        )


def check_finite(path: str | Path, state: Mapping[str, object]) -> None:
    """
    Args:
        path: path of the checkpoint, for the error message.
        state: a state dict of tensors or arrays.

    Raises:
        ValueError: a parameter has numbers that are NaN or infinite, with which a model finds nothing. The
            message names the first such parameter.
    """
    for name, value in state.items():
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(value)
        if isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all():
            raise InputError(
                f"checkpoint {path}: {name} has numbers that are NaN or infinite, expected weights of a "
                "training that has not diverged"
            )


def check_state(path: str | Path, found: Mapping, expected: Mapping[str, Tensor]) -> None:
    """
    Args:
        path: where the state dict comes from, for the error message.
        found: a state dict.
        expected: a state dict with the expected names and shapes.

    Raises:
        ValueError: a parameter is missing or has another shape; the message names the first.
    """
    for name, value in expected.items():
        tensor = found.get(name)
        shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else "nothing"
        if shape != tuple(value.shape):
            raise InputError(f"{path} has {shape} for {name}, expected {tuple(value.shape)}")


def check_classes(path: str | Path, found: Sequence[str], expected: Sequence[str]) -> None:
    """
    Args:
        path: path of the checkpoint, for the error message.
        found, expected: class names in the order of their contiguous indices.

    Raises:
        ValueError: the checkpoint has other classes, or the same in another order; the message names the
            first difference.
    """
    if len(found) != len(expected):
        raise InputError(f"checkpoint {path} knows {len(found)} classes, expected {len(expected)}")
    different = first_difference(found, expected)
    if different is not None:
        number, a, b = different
        raise InputError(
            f"checkpoint {path} knows other classes: number {number + 1} is {a!r}, expected {b!r}"
        )


def are_classes(names: object, category_ids: object, with_masks: object) -> bool:
    """
    Whether the classes recorded in a checkpoint have the form that this project writes.

    Args:
        names: class names, in the order of their contiguous indices.
        category_ids: category id of each class, no two the same.
        with_masks: contiguous indices.
    """
    if not all(isinstance(values, list | tuple) for values in (names, category_ids, with_masks)):
        return False
    return (
        all(isinstance(name, str) for name in names)
        and all(isinstance(i, int) for i in (*category_ids, *with_masks))
        and len(names) == len(set(category_ids)) == len(category_ids)
        and set(with_masks) <= set(range(len(names)))
    )
