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
    """A file of JSON lines: the first describes the work, each other line a piece of it that is done."""

    def __init__(self, path: Path, done: list, file: BinaryIO):
        """See :func:`open_journal`."""
        self.path = path
        self.done = done
        """The pieces that earlier runs have done."""

        self._file = file

    def append(self, piece) -> None:
        """
        Args:
            piece: a piece that is done, of the ``kind`` given to :func:`open_journal`.
        """
        self._file.write(msgspec.json.encode(piece) + b"\n")
        self._file.flush()

    def pieces(self, kind: type = Any) -> Iterator:
        """
        All pieces that are done, one after another.

        Args:
            kind: type of a piece, for msgspec; plain JSON values if not given.

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
        """Delete the file, once everything is done and in its final place."""
        self.path.unlink(missing_ok=True)


@contextmanager
def open_journal(path: Path, *, work: dict, kind: type) -> Iterator[Journal]:
    """
    Start a journal, or continue an existing one.

    Args:
        path: path of the file.
        work: everything that the pieces depend on, as JSON values. Anything else may change between runs.
        kind: type of a piece, for msgspec. Other fields of existing pieces are ignored.

    Raises:
        ValueError: the file belongs to other work, or was not written by this function.
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
                    raise InputError("its first line is different")
                length += len(line)
        except ValueError as error:  # msgspec's errors too
            raise InputError(
                f"{path} belongs to a run with other inputs or options: delete it, or give another --output"
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
