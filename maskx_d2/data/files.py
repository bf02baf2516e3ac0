"""Writes files completely or not at all, without damage to other files, and reads JSON."""

import contextlib
import errno
import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image

from maskx_d2.data.errors import InputError, MissingFileError

_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """
    A new file beside ``path`` to write to, that takes its place if nothing goes wrong. Two that write at
    one time do not meet: the last one's file stays.

    Raises:
        ValueError: ``path`` is something else than a file: see :func:`check_replaceable`.
    """
    check_replaceable(path)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    # Opened here so that it is never somebody else's, and for the rights that other new files get.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield temporary
        os.replace(temporary, path)
    except Exception as error:
        # torch.save makes an error of its own of it.
        cause = error if isinstance(error, OSError) else error.__context__
        if isinstance(cause, OSError) and cause.errno in _DISK_IS_FULL:
            raise OSError(cause.errno, cause.strerror, str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def check_replaceable(path: Path) -> None:
    """
    Raises:
        ValueError: ``path`` is a folder, a device, a pipe or a link, and not a file or nothing.
    """
    check_no_link(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder, expected a file or nothing")


def check_no_link(path: Path) -> None:
    """
    Raises:
        ValueError: ``path`` is a device, a pipe or a link, and not a file, a folder or nothing.
    """
    if path.is_symlink():
        raise InputError(f"{path} is a link, expected a file or nothing: give the place that it leads to")
    if path.exists() and not path.is_file() and not path.is_dir():
        raise InputError(f"{path} is a device or a pipe, expected a file or nothing")


def check_keeps_inputs(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """
    Raises:
        ValueError: an output would replace an input, which is named.
    """
    kept = {real_path(path) for path in inputs}
    for path in outputs:
        if real_path(path) in kept:
            raise InputError(f"what is made of {path} would overwrite it: give another --output")


def real_path(path: str | Path) -> Path:
    """Where links lead; unlike ``Path.resolve``, links that lead to themselves are where they are."""
    return Path(os.path.realpath(path))


def write_text(path: Path, text: str) -> None:
    """Write the whole file or leave the old one, see :func:`replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content) -> None:
    """As :func:`write_text`, of JSON for people to read too. JSON has no NaN: it becomes null."""
    write_text(path, json.dumps(_without_nan(content), indent=2, allow_nan=False))


def write_png(path: Path, picture: Image.Image) -> None:
    """As :func:`write_text`, of a picture."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        picture.save(file, format="PNG")


def load_json(path: Path, *, what: str):
    """
    Args:
        path: a JSON file.
        what: what it is, for the errors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON, or none that Python can read.
    """
    if not path.is_file():
        raise MissingFileError(f"{what} {path} is not a file")
    try:
        return json.loads(path.read_bytes())
    except RecursionError as error:
        raise InputError(f"{what} {path} is nested too deep, expected a few levels") from error
    except ValueError as error:  # of JSON, of its encoding, and of numbers of thousands of digits
        raise InputError(f"{what} {path} is not JSON: {error}") from error


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _without_nan(content):
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and math.isnan(content) else content
