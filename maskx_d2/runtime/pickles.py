"""
Reading pickles as data: numeric arrays and plain values. Nothing that a file names is imported or called,
and a file cannot ask for more memory than a small multiple of its own size.
"""

import math
import mmap
import pickle
import pickletools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

# Checkpoints have some 100,000 opcodes and 15 levels. An empty set takes one opcode and 216 bytes.
_MOST_OPCODES = 1_000_000
_MOST_VALUES = 1_000_000
_DEEPEST = 100
_SAVES = ("PUT", "BINPUT", "LONG_BINPUT")
_ADDS = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")
_NUMERIC = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248]|c8|c16)")
_BYTE_ORDERS = ("<", ">", "|", "=")


class RefusedPickle(ValueError):
    """The pickle holds something other than arrays and plain values, or asks for too much memory."""


class Pickle:
    """A pickle in a file, and the stand-ins for what pickles of arrays name."""

    def __init__(self, file: BinaryIO, *, size: int):
        """
        Args:
            file: where the pickle begins. Reading more than there is must return what there is.
            size: size of the file in bytes.
        """
        self._file = file
        # Text takes up to twice as many bytes in a pickle as in memory, arrays once.
        self._bytes_left = 2 * size

    def load(
        self,
        stand_ins: Mapping[tuple[str, str], object] | None = None,
        *,
        load_storage: Callable[[object], object] | None = None,
    ):
        """
        Read the pickle.

        Args:
            stand_ins: what to use for the globals that the pickle names, by module and name; if None, those
                for arrays.
            load_storage: what to use for persistent ids, such as the storages of PyTorch; none are allowed
                if None.

        Returns:
            What the pickle holds. Arrays are native, writable and independent of the file.

        Raises:
            RefusedPickle: it holds something else, is nested too deep, or asks for too much memory.
            Exception: whatever the unpickler raises for a file that is not a pickle.
        """
        stand_ins = self._array_stand_ins() if stand_ins is None else stand_ins
        start = self._file.tell()
        _check_opcodes(self._file)
        self._file.seek(start)
        content = _Unpickler(self._file, stand_ins, load_storage).load()
        return _Plain().of(content)

    def plain_stand_ins(self) -> dict[tuple[str, str], object]:
        """Stand-ins for the globals that pickles name besides those for arrays and tensors."""
        return {
            ("collections", "OrderedDict"): StandIn(_Dictionary),
            ("_codecs", "encode"): StandIn(self._encode),
            # Empty bytes, in protocols without bytes.
            **{(module, "bytes"): StandIn(lambda: b"") for module in ("__builtin__", "builtins")},
        }

    def _encode(self, text: object, encoding: object) -> bytes:
        """How bytes are written in protocols without bytes."""
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise RefusedPickle(f"it encodes text as {str(encoding)[:20]!r}, expected latin1")
        self._take(len(text))
        return text.encode("latin1")

    def _array_stand_ins(self) -> dict[tuple[str, str], object]:
        multiarray = [f"numpy.{core}.multiarray" for core in ("core", "_core")]
        return {
            **self.plain_stand_ins(),
            ("numpy", "dtype"): StandIn(_Type),
            ("numpy", "ndarray"): _NDARRAY,
            **{(module, "_reconstruct"): StandIn(self._reconstruct) for module in multiarray},
            **{(module, "scalar"): StandIn(self._scalar) for module in multiarray},
        }

    def _reconstruct(self, kind: object, shape: object, code: object) -> "_Array":
        if kind is not _NDARRAY:
            raise RefusedPickle("it makes an array of another class than numpy.ndarray")
        return _Array(self._take)

    def _scalar(self, dtype: object, content: object = None) -> np.generic:
        array = _Array(self._take)
        array.__setstate__((1, (), dtype, False, content))
        return array.value[()]

    def _take(self, num_bytes: int) -> None:
        self._bytes_left -= num_bytes
        if self._bytes_left < 0:
            raise RefusedPickle("it asks for more memory than its size allows")


def read_array_pickle(path: Path):
    """
    Read a pickle of arrays and plain values, including pickles of Python 2.

    Args:
        path: path of the file.

    Raises:
        RefusedPickle, Exception: see :meth:`Pickle.load`.
    """
    size = path.stat().st_size
    if size == 0:
        raise RefusedPickle("it is empty")
    # A map ends where the file ends, whatever length a pickle claims for its parts.
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return Pickle(content, size=size).load()


class StandIn:
    """Calls a function of ours in place of what a pickle names, and cannot be changed by the pickle."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable):
        self._function = function

    def __call__(self, *args):
        return self._function(*args)

    def __setstate__(self, state: object) -> None:
        raise RefusedPickle("it changes a function, expected arrays and plain values")


class _Dictionary(dict):
    def __setstate__(self, state: object) -> None:
        """Attributes, such as the ``_metadata`` of a state dict, are left out."""


_NDARRAY = object()


class _Type:
    """Stand-in for ``numpy.dtype``: a number in a byte order."""

    def __init__(self, code: object, align: object = False, copy: object = False):
        if not isinstance(code, str) or not _NUMERIC.fullmatch(code):
            raise RefusedPickle(f"it has an array of {str(code)[:20]!r}, expected numbers")
        self._code = code

    def __setstate__(self, state: object) -> None:
        known = isinstance(state, tuple) and len(state) >= 5 and state[1] in _BYTE_ORDERS
        if not known or any(part is not None for part in state[2:5]):
            raise RefusedPickle("it has an array of a type with fields or an unknown byte order")
        order = "" if state[1] == "|" else state[1]
        self._code = order + self._code.lstrip("<>=|")

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self._code)


class _Array:
    """Stand-in for an array that is being built: ``__setstate__`` sets ``value``."""

    value: np.ndarray

    def __init__(self, take: Callable[[int], None]):
        self._take = take

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], _Type):
            raise RefusedPickle("it has an array in an unknown form")
        _, shape, kind, in_columns, content = state
        if isinstance(content, str):  # as Python 2 writes it
            content = content.encode("latin1")
        if not isinstance(content, bytes) or not _is_shape(shape):
            raise RefusedPickle("it has an array in an unknown form")
        dtype = kind.dtype
        if math.prod(shape) * dtype.itemsize != len(content):
            raise RefusedPickle(
                f"it has an array of shape {str(shape)[:80]} in {len(content)} bytes, expected "
                f"{dtype.itemsize} bytes a number"
            )
        self._take(len(content))
        array = np.frombuffer(content, dtype).reshape(shape, order="F" if in_columns else "C")
        self.value = array.astype(dtype.newbyteorder("="))


def _is_shape(shape: object) -> bool:
    return isinstance(shape, tuple) and len(shape) <= 32 and all(type(n) is int and n >= 0 for n in shape)


class _Unpickler(pickle.Unpickler):
    def __init__(
        self,
        file: BinaryIO,
        stand_ins: Mapping[tuple[str, str], object],
        load_storage: Callable[[object], object] | None,
    ):
        super().__init__(file, encoding="latin1")
        self._stand_ins = stand_ins
        self._load_storage = load_storage

    def find_class(self, module: str, name: str) -> object:
        try:
            return self._stand_ins[module, name]
        except KeyError:
            raise RefusedPickle(
                f"it holds {module}.{name}, expected tensors, arrays and plain values: loading it could "
                "run code"
            ) from None

    def persistent_load(self, pid: object) -> object:
        if self._load_storage is None:
            raise RefusedPickle("it refers to something outside itself, expected arrays and plain values")
        return self._load_storage(pid)


def _check_opcodes(file: BinaryIO) -> None:
    """
    Follow a pickle without building anything.

    Raises:
        RefusedPickle: it has too many opcodes, saves a value in a memo slot that it cannot have reached, or
            nests values deeper than C code can follow.
    """
    depths: list[int | None] = []  # of the values on the stack; None for a mark
    saved: dict[int, int] = {}
    for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if number == _MOST_OPCODES:
            raise RefusedPickle(f"it has more than {_MOST_OPCODES:,} values")
        name = opcode.name
        if name in _SAVES or name == "MEMOIZE":
            place = len(saved) if name == "MEMOIZE" else argument
            if place > number:
                raise RefusedPickle(f"it saves a value at place {place}, expected at most {number}")
            saved[place] = depths[-1] or 0
        popped = _pop(depths, opcode)
        depth = 1 + max(popped, default=-1)
        if name in _ADDS and popped:
            depth = max(popped[0], 1 + max(popped[1:], default=-1))
        elif "GET" in name:
            depth = saved.get(argument, 0)
        if depth > _DEEPEST:
            raise RefusedPickle(f"it is nested deeper than {_DEEPEST} levels")
        depths += [None if kind is pickletools.markobject else depth for kind in opcode.stack_after]


def _pop(depths: list[int | None], opcode: pickletools.OpcodeInfo) -> list[int]:
    """Pop what an opcode takes from the stack."""
    before, above_mark = opcode.stack_before, []
    count = len(before)
    if pickletools.markobject in before:
        count = before.index(pickletools.markobject)
        while (depth := depths.pop()) is not None:
            above_mark.append(depth)
    below = depths[len(depths) - count :]
    del depths[len(depths) - count :]
    return [depth or 0 for depth in below] + above_mark


class _Plain:
    """Replaces the stand-ins in what was read."""

    def __init__(self) -> None:
        self._values_left = _MOST_VALUES

    def of(self, value: object, depth: int = 0):
        self._values_left -= 1
        if self._values_left < 0 or depth > _DEEPEST:
            raise RefusedPickle("its values contain each other too often or too deep")
        if isinstance(value, dict):
            return {self.of(k, depth + 1): self.of(v, depth + 1) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.of(item, depth + 1) for item in value)
        if isinstance(value, _Array):
            return value.value
        if value is None or isinstance(value, bool | int | float | complex | str | bytes | np.generic):
            return value
        raise RefusedPickle(f"it holds a {type(value).__name__}, expected arrays and plain values")
