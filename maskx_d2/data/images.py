"""Reading image files."""

import contextlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageOps

from maskx_d2.data.errors import InputError, MissingFileError

MAX_MEGAPIXELS = 50.0
"""Of an image, where nothing else is said: a file of kilobytes may stand for gigabytes of pixels."""

PILLOWS_MEGAPIXELS = 178.0
"""Pillow reads no larger ones."""

# Of sides. What a model resizes to its size would have no pixel left on the shorter one.
_MAX_RATIO = 100
_READ_AHEAD = 4


def read_image(path: Path, *, max_megapixels: float = MAX_MEGAPIXELS) -> Image.Image:
    """
    An image in RGB, upright as its EXIF data say.

    Args:
        path: of the file.
        max_megapixels: larger images are refused before their pixels are read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read as an image, is too large, its pixels have more than 8 bits, of which
            nobody can tell the range, or it is a strip.
    """
    with open_image(path, max_megapixels=max_megapixels) as image:
        return _upright(image)


def read_image_from(file: BinaryIO, *, name: str, max_megapixels: float = MAX_MEGAPIXELS) -> Image.Image:
    """
    As :func:`read_image`, of what is open.

    Args:
        file: what the image is in.
        name: for the error.
        max_megapixels: see there.

    Raises:
        ValueError: see there.
    """
    with _opened(file, name, max_megapixels) as image:
        return _upright(image)


def read_ahead(
    paths: Iterable[Path], *, max_megapixels: float = MAX_MEGAPIXELS
) -> Iterator[tuple[Path, Future[Image.Image]]]:
    """
    Paths, with images that are read in another thread while the one before is worked on.

    Yields:
        A path, and what gives its image or raises as :func:`read_image`.
    """
    with ThreadPoolExecutor(1) as thread:
        ahead: deque[tuple[Path, Future[Image.Image]]] = deque()
        for path in paths:
            ahead.append((path, thread.submit(read_image, path, max_megapixels=max_megapixels)))
            if len(ahead) > _READ_AHEAD:
                yield ahead.popleft()
        yield from ahead


@contextlib.contextmanager
def open_image(path: Path, *, max_megapixels: float = MAX_MEGAPIXELS) -> Iterator[Image.Image]:
    """
    An image whose pixels are not read yet. What reading them fails of is raised as here.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_image`.
    """
    # Unlike pathlib's these answer for names too that no file can have. A pipe would be waited for.
    if not os.path.isfile(path):
        raise MissingFileError(
            f"image {path} {'is not a file' if os.path.exists(path) else 'does not exist'}"
        )
    with _opened(path, path, max_megapixels) as image:
        yield image


def check_size(size: tuple[int, int], max_megapixels: float) -> None:
    """
    Args:
        size: width and height in pixels.
        max_megapixels: what is allowed.

    Raises:
        ValueError: it has more.
    """
    width, height = size
    if width * height > max_megapixels * 1e6:
        raise InputError(
            f"it has {width} x {height} pixels, expected at most {max_megapixels:g} megapixels: "
            "--max-megapixels, in training data.max_megapixels or INPUT.MAX_MEGAPIXELS, allows more"
        )


def size_difference(size: tuple[int, int], record: Mapping) -> str | None:
    """
    Args:
        size: width and height of an image.
        record: what an annotation file says of it.

    Returns:
        How they differ, as the end of a sentence that names the image, or None.
    """
    if size == (record["width"], record["height"]):
        return None
    said = f"{record['width']} x {record['height']}"
    return f"has {size[0]} x {size[1]} pixels, but the annotation file says {said}"


def check_images_exist(paths: Iterable[Path], *, of: str = "") -> None:
    """
    Args:
        paths: image files.
        of: for the error, what they belong to if their folder does not say it.

    Raises:
        FileNotFoundError: some do not exist: the first is named, and the number of the others.
    """
    absent = [path for path in paths if not os.path.isfile(path)]
    if absent:
        more = f" ({len(absent) - 1} more)" if len(absent) > 1 else ""
        raise MissingFileError(f"image {absent[0]}{of and f' of {of}'} does not exist{more}")


@contextlib.contextmanager
def _opened(file: BinaryIO | Path, name: object, max_megapixels: float) -> Iterator[Image.Image]:
    try:
        with Image.open(file) as image:
            check_size(image.size, max_megapixels)
            _check(image)
            yield image
    except Exception as error:  # Pillow lets through whatever a broken file makes it stumble over
        reason = str(error) or type(error).__name__
        raise InputError(f"{name} cannot be read as an image: {reason}") from error


def _upright(image: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(image).convert("RGB")


def _check(image: Image.Image) -> None:
    if image.mode == "F" or image.mode.startswith("I"):
        bits = 16 if image.mode.startswith("I;16") else 32
        raise InputError(f"its pixels have {bits} bits, expected 8: scale them by the range that they use")
    shorter, longer = sorted(image.size)
    if longer > _MAX_RATIO * shorter:
        raise InputError(
            f"it has {image.width} x {image.height} pixels, expected a longer side of at most {_MAX_RATIO} "
            "times the shorter one"
        )
