"""Images at URLs such as ``s3://bucket/folder``, read with pyarrow."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from PIL import Image

from maskx_d2.data.errors import InputError, MissingFileError
from maskx_d2.data.images import MAX_MEGAPIXELS, read_image, read_image_from

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem


def is_address(path: str | Path) -> bool:
    """Whether this is an address (a URL) rather than a path."""
    return "://" in str(path)


def from_anywhere(path: str) -> str:
    """An address unchanged; a path made absolute, so that it does not depend on the current folder."""
    return path if is_address(path) else str(Path(path).absolute())


def file_in(folder: str, name: str) -> str:
    """The address or the path of a file in a folder."""
    if not is_address(folder):
        return str(Path(folder) / name)
    parts = urlsplit(folder)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}"))


def file_system(address: str) -> "tuple[FileSystem, str]":
    """
    The file system of an address or a path, and the name of the file or folder in it.

    Raises:
        ValueError: the address is invalid, or no file system is known that can read it.
    """
    from pyarrow.fs import LocalFileSystem

    if not is_address(address):
        return LocalFileSystem(), str(Path(address).resolve())
    parts = urlsplit(address)
    files, top = _top_of(urlunsplit(parts._replace(path="/", fragment="")))
    return files, top.rstrip("/") + unquote(parts.path)


@functools.cache
def _top_of(address: str) -> "tuple[FileSystem, str]":
    """Cached for all files of a bucket, because locating the bucket may need the network."""
    from pyarrow import ArrowException
    from pyarrow.fs import FileSystem

    try:
        return FileSystem.from_uri(address)
    except (ArrowException, OSError) as error:
        raise InputError(f"{address} is not an address that pyarrow can read: {error}") from error


def find_images_at(address: str, *, recursive: bool, suffixes: Sequence[str]) -> list[str]:
    """
    Find the addresses of images: the given one, or those in the given folder, sorted.

    Args:
        address: address of a file or a folder.
        recursive: whether to search subfolders too.
        suffixes: suffixes of image files in folders.

    Raises:
        FileNotFoundError: nothing is there, or a folder holds no image.
        ValueError: the address cannot be read.
    """
    from pyarrow.fs import FileSelector, FileType

    files, inside = file_system(address)
    try:
        found = files.get_file_info(inside)
        if found.type == FileType.File:
            return [address]
        if found.type != FileType.Directory:
            raise MissingFileError(f"{address} is neither an image nor a folder")
        below = files.get_file_info(FileSelector(inside, recursive=recursive))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"{address} cannot be read: {error}") from error
    names = sorted(
        info.path
        for info in below
        if info.type == FileType.File and info.path.lower().endswith(tuple(suffixes))
    )
    if not names:
        raise MissingFileError(f"{address} holds no image, expected files ending in {', '.join(suffixes)}")
    return [file_in(address, name.removeprefix(inside).lstrip("/")) for name in names]


def read_image_at(address: str, *, max_megapixels: float = MAX_MEGAPIXELS) -> Image.Image:
    """
    Like :func:`maskx_d2.data.images.read_image`, for an address or a path.

    Raises:
        FileNotFoundError, ValueError: see there.
    """
    if not is_address(address):
        return read_image(Path(address), max_megapixels=max_megapixels)
    files, inside = file_system(address)
    try:
        with files.open_input_file(inside) as file:
            return read_image_from(file, name=address, max_megapixels=max_megapixels)
    except FileNotFoundError as error:
        raise MissingFileError(f"image {address} does not exist") from error
    except OSError as error:
        raise InputError(f"{address} cannot be read: {error}") from error
