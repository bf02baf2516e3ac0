"""A record of what a long command has done, so that it continues from there when it is started again."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from maskx_d2.data.errors import InputError
from maskx_d2.data.files import check_replaceable


class Journal:
    """A file of JSON lines: first what the work is, then a line for each piece of it that is done."""

    def __init__(self, path: Path, done: list, file: BinaryIO):
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

    def pieces(self, kind: type = Any) -> Iterator:
        """
        All that is done, one after the other.

        Args:
            kind: type of a piece, for msgspec; as JSON has it, if not given.

        Raises:
            ValueError: a piece is of another kind.
        """
        decode = msgspec.json.Decoder(kind).decode
        with self.path.open("rb") as file:
            next(file)
            try:
                yield from map(decode, file)
            except ValueError as error:  # msgspec's errors too
                raise self.refusal(error) from error

    def refusal(self, reason: object) -> InputError:
        """The error for a file that a command cannot have written."""
        return InputError(f"{self.path} is not what this command writes: {reason}; delete it")

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
        kind: type of a piece, for msgspec. Of pieces that are there, other fields are passed over.

    Raises:
        ValueError: the file is of other work, or none that this function has begun.
    """
    check_replaceable(path)
    with path.open("ab+") as file:
        file.seek(0)
        first = json.dumps(work).encode() + b"\n"
        decode = msgspec.json.Decoder(kind).decode
        done, length = [], 0
        try:
            for line in file:
                if not line.endswith(b"\n") and (length or first.startswith(line)):
                    break  # it was being written when a command was killed
                if length:
                    done.append(decode(line))
                elif line != first:
                    raise InputError("its first line is another")
                length += len(line)
        except ValueError as error:  # msgspec's errors too
            raise InputError(
                f"{path} is of other work than this: delete it, or give another --output"
            ) from error
        file.truncate(length)
        if not length:
            file.write(first)
            file.flush()
        try:
            yield Journal(path, done, file)
        finally:
            if file.tell() == len(first):  # nothing is done
                path.unlink(missing_ok=True)
