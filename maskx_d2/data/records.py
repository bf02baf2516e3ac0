"""``Records``: a list of many small objects, stored in one array."""

import pickle
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np


class Records(Sequence):
    """
    The elements of a dataset for a data loader, pickled one after another into an array. Forked processes
    share the array, whereas Python objects are copied as soon as their reference count changes. Processes
    that read it from the same file share it too. (The idea is Detectron2's ``DatasetFromList``.)
    """

    def __init__(self, content: np.ndarray, ends: np.ndarray):
        """
        Args:
            content: (number of bytes,) uint8. It will be unpickled, so it must come from this program.
            ends: (number of elements,) int64, where each element ends in ``content``.
        """
        self.content = content
        self.ends = ends

    @classmethod
    def of(cls, elements: Iterable[Any]) -> "Records":
        """Build from an iterable, which need not hold all elements at once. Records are returned as is."""
        if isinstance(elements, Records):
            return elements
        content, ends = bytearray(), []
        for element in elements:
            content += pickle.dumps(element, protocol=pickle.HIGHEST_PROTOCOL)
            ends.append(len(content))
        return cls(np.frombuffer(content, dtype=np.uint8), np.array(ends, dtype=np.int64))

    def write(self, path: Path) -> None:
        """Write a file for :meth:`read`: the content, the ends of its elements, and their number."""
        with path.open("wb") as file:
            for part in (self.content, self.ends, np.array([len(self)], dtype=np.int64)):
                part.tofile(file)

    @classmethod
    def read(cls, path: Path) -> "Records":
        """Read a file into memory that all its readers share, and that stays when the file is deleted."""
        # Torch requires writable memory. Pages would be copied if they were written to, which they are not.
        whole = np.memmap(path, dtype=np.uint8, mode="c")
        (number,) = whole[-8:].view(np.int64)
        start = len(whole) - 8 * (number + 1)
        # Copied, because the ends may not be aligned to eight bytes in the file.
        return cls(whole[:start], np.array(whole[start:-8]).view(np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> Any:
        number = range(len(self))[index]
        start = self.ends[number - 1] if number else 0
        return pickle.loads(memoryview(self.content[start : self.ends[number]]))

    def __iter__(self) -> Iterator[Any]:
        return (self[number] for number in range(len(self)))
