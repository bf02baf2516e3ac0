"""What a long command has done so far, so that it goes on there when it is started again."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from maskx_d2.data.files import check_replaceable


class Journal:
    """A file of JSON lines: first what the work is, then a line for each piece of it that is done."""

    def __init__(self, path: Path, done: list, file):
        """See :func:`open_journal`."""
        self.path = path
        self.done = done
        """What earlier starts have done."""

        self._file = file

    def append(self, piece) -> None:
        """
        Args:
            piece: what is done, as the ``kind`` of :func:`open_journal`.
        """
        self._file.write(msgspec.json.encode(piece) + b"\n")
        self._file.flush()

    def delete(self) -> None:
        """When all is done, and where it belongs."""
        self.path.unlink(missing_ok=True)


@contextmanager
def open_journal(path: Path, *, work: dict, kind: type) -> Iterator[Journal]:
    """
    Begin a journal, or go on with the one that is there.

    Args:
        path: of the file.
        work: all that the pieces depend on, as JSON has it. What is not in it may change.
        kind: type of a piece, for msgspec.

    Raises:
        ValueError: the file is of other work, or none that this function has begun.
    """
    check_replaceable(path)
    with path.open("ab+") as file:
        file.seek(0)
        first = json.dumps(work).encode() + b"\n"
        # What was being written when a command was killed is not whole.
        whole, _, begun = file.read().rpartition(b"\n")
        lines = whole.split(b"\n") if whole else []
        is_of_this = lines[0] + b"\n" == first if lines else first.startswith(begun)
        try:
            if not is_of_this:
                raise ValueError("its first line is another")
            decode = msgspec.json.Decoder(kind).decode
            done = [decode(line) for line in lines[1:]]
        except ValueError as error:  # msgspec's errors too
            raise ValueError(
                f"{path} is of other work than this: delete it, or give another --output"
            ) from error
        file.truncate(len(whole) + 1 if lines else 0)
        if not lines:
            file.write(first)
            file.flush()
        yield Journal(path, done, file)
