"""``Records``: a list of many small objects, stored in one array."""

import pickle
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np


class Records(Sequence):
    """
    What a data loader holds of a dataset: each element pickled, one behind the other, in an array. Forked
    processes share it, where Python's objects are copied as soon as they are counted, and processes that
    read one file of it share that. (The idea is Detectron2's ``DatasetFromList``.)
    """

    def __init__(self, content: np.ndarray, ends: np.ndarray):
        """
        Args:
            content: (number of bytes,) uint8. It is unpickled: it must be of this program's own making.
            ends: (number of elements,) int64, where each ends in it.
        """
        self.content = content
        self.ends = ends

    @classmethod
    def of(cls, elements: Iterable[Any]) -> "Records":
        """Whatever they come from need not hold all of them at a time. Records stay what they are."""
        if isinstance(elements, Records):
            return elements
        content, ends = bytearray(), []
        for element in elements:
            content += pickle.dumps(element, protocol=pickle.HIGHEST_PROTOCOL)
            ends.append(len(content))
        return cls(np.frombuffer(content, dtype=np.uint8), np.array(ends, dtype=np.int64))

    def write(self, path: Path) -> None:
        """For :meth:`read`: the content, where its elements end, and how many there are."""
        with path.open("wb") as file:
            for part in (self.content, self.ends, np.array([len(self)], dtype=np.int64)):
                part.tofile(file)

    @classmethod
    def read(cls, path: Path) -> "Records":
        """A file's, in memory that is shared by all who read it and stays when the file is deleted."""
        # Of what is written to, which torch asks to be allowed, there would be a copy.
        whole = np.memmap(path, dtype=np.uint8, mode="c")
        (number,) = whole[-8:].view(np.int64)
        start = len(whole) - 8 * (number + 1)
        # The places of the elements need not lie where numbers of eight bytes may.
        return cls(whole[:start], np.array(whole[start:-8]).view(np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> Any:
        number = range(len(self))[index]
        start = self.ends[number - 1] if number else 0
        return pickle.loads(memoryview(self.content[start : self.ends[number]]))

    def __iter__(self) -> Iterator[Any]:
        return (self[number] for number in range(len(self)))
