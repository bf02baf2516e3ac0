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
    Yield a new file beside ``path`` to write to, which replaces ``path`` if nothing goes wrong. Concurrent
    writers do not interfere: the file of the last one remains.

    Raises:
        ValueError: ``path`` is something other than a file: see :func:`check_replaceable`.
    """
    check_replaceable(path)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    # Created here, so that it never belongs to somebody else and gets the permissions of a new file.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield temporary
        os.replace(temporary, path)
    except Exception as error:
        # torch.save raises an error of its own instead.
        cause = error if isinstance(error, OSError) else error.__context__
        if isinstance(cause, OSError) and cause.errno in _DISK_IS_FULL:
            raise OSError(cause.errno, cause.strerror, str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def check_replaceable(path: Path) -> None:
    """
    Raises:
        ValueError: ``path`` is a folder, a device, a pipe or a link; it may be a file or not exist.
    """
    check_no_link(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder, expected a file or nothing")


def check_no_link(path: Path) -> None:
    """
    Raises:
        ValueError: ``path`` is a device, a pipe or a link; it may be a file or a folder, or not exist.
    """
    if path.is_symlink():
        raise InputError(f"{path} is a link, expected a file or nothing: give the path that it points to")
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
            raise InputError(f"the output would overwrite its input {path}: give another --output")


def real_path(path: str | Path) -> Path:
    """Resolve links. Unlike with ``Path.resolve``, a link that points to itself is left as it is."""
    return Path(os.path.realpath(path))


def write_text(path: Path, text: str) -> None:
    """Write the whole file or leave the old one, see :func:`replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content) -> None:
    """Like :func:`write_text`, for readable JSON. NaN, which JSON does not have, becomes null."""
    write_text(path, json.dumps(_without_nan(content), indent=2, allow_nan=False))


def write_png(path: Path, picture: Image.Image) -> None:
    """Like :func:`write_text`, for a picture."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        picture.save(file, format="PNG")


def load_json(path: Path, *, what: str):
    """
    Args:
        path: a JSON file.
        what: what the file is, for error messages.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON, or not JSON that Python can read.
    """
    if not path.is_file():
        raise MissingFileError(f"{what} {path} is not a file")
    try:
        return json.loads(path.read_bytes())
    except RecursionError as error:
        raise InputError(f"{what} {path} is nested too deep, expected a few levels") from error
    except ValueError as error:  # invalid JSON or encoding, or numbers with thousands of digits
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
