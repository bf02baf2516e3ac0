"""Reading image files."""

import contextlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from maskx_d2.data.errors import InputError, MissingFileError

MAX_MEGAPIXELS = 50.0
"""Default limit for an image: a file of a few kilobytes can hold gigabytes of pixels."""

PILLOWS_MEGAPIXELS = 178.0
"""Pillow refuses larger images."""

# Of the sides. When a model resizes a narrower strip, its shorter side could be left without a pixel.
_MAX_RATIO = 100
_READ_AHEAD = 4
_HEAD = 4096  # bytes of a file in which the size marker of JPEG 2000 is found


def read_image(path: Path, *, max_megapixels: float = MAX_MEGAPIXELS) -> Image.Image:
    """
    Read an image as RGB, rotated upright according to its EXIF data.

    Args:
        path: path of the file.
        max_megapixels: larger images are refused before their pixels are read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read as an image, is too large, has pixels of more than 8 bits, whose range
            is unknown, or is a narrow strip.
    """
    with open_image(path, max_megapixels=max_megapixels) as image:
        return _upright(image)


def read_image_from(file: BinaryIO, *, name: str, max_megapixels: float = MAX_MEGAPIXELS) -> Image.Image:
    """
    Like :func:`read_image`, for an open file.

    Args:
        file: the file with the image.
        name: name of the image, for error messages.
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
    Read images in another thread while the caller works on the previous ones.

    Yields:
        A path, and a future that returns its image or raises like :func:`read_image`.
    """
    thread = ThreadPoolExecutor(1)
    try:
        ahead: deque[tuple[Path, Future[Image.Image]]] = deque()
        for path in paths:
            ahead.append((path, thread.submit(read_image, path, max_megapixels=max_megapixels)))
            if len(ahead) > _READ_AHEAD:
                yield ahead.popleft()
        yield from ahead
    finally:
        # Not waiting: a generator that is left behind is closed wherever garbage is collected, which may be
        # where a thread is being started, and there another one cannot be waited for.
        thread.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def open_image(path: Path, *, max_megapixels: float = MAX_MEGAPIXELS) -> Iterator[Image.Image]:
    """
    Open an image without reading its pixels. Errors of reading them later are raised in the same way.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_image`.
    """
    # Unlike pathlib's, these functions also accept names that no file can have. Opening a pipe would block.
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
        max_megapixels: the allowed size.

    Raises:
        ValueError: the image is larger.
    """
    width, height = size
    if width * height > max_megapixels * 1e6:
        raise InputError(
            f"it has {width} x {height} pixels, expected at most {max_megapixels:g} megapixels: "
            "raise --max-megapixels, or in training data.max_megapixels or INPUT.MAX_MEGAPIXELS"
        )


def size_difference(size: tuple[int, int], record: Mapping) -> str | None:
    """
    Args:
        size: width and height of an image.
        record: entry of the image in an annotation file.

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
        of: what the images belong to, for the error message, if their folder does not say it.

    Raises:
        FileNotFoundError: some do not exist; the message names the first and the number of the others.
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
            _check(image, file)
            yield image
    except UnidentifiedImageError as error:
        reason = str(error)
        with contextlib.suppress(Exception):  # a broken file can make Pillow raise anything
            channels, bits = _stored(file)
            if channels:
                reason = f"it has {channels} channels of {bits} bits, expected 1, 3 or 4 of 8 bits"
        raise InputError(f"{name} cannot be read as an image: {reason}") from error
    except Exception as error:  # a broken file can make Pillow raise anything
        reason = str(error) or type(error).__name__
        raise InputError(f"{name} cannot be read as an image: {reason}") from error


def _upright(image: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(image).convert("RGB")


@contextlib.contextmanager
def _at_start(file: BinaryIO | Path) -> Iterator[BinaryIO]:
    if isinstance(file, Path):
        with file.open("rb") as opened:
            yield opened
        return
    place = file.tell()
    file.seek(0)
    try:
        yield file
    finally:
        file.seek(place)  # from where Pillow reads on


def _stored(file: BinaryIO | Path) -> tuple[int, int]:
    """
    Number of channels and bits of each that a TIFF or JPEG 2000 file stores, of which Pillow may drop some;
    0 for unknown.
    """
    with _at_start(file) as opened:
        head = opened.read(_HEAD)
        if head[:4] in TiffImagePlugin.PREFIXES:
            tags = TiffImagePlugin.ImageFileDirectory_v2(head[: 16 if 43 in head[2:4] else 8])
            opened.seek(tags.next)
            tags.load(opened)
            bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
            return int(tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)), max(map(int, bits))
    size = head.find(b"\xff\x4f\xff\x51")  # start and size marker of JPEG 2000
    if size >= 0 and len(head) > size + 42:
        return int.from_bytes(head[size + 40 : size + 42], "big"), (head[size + 42] & 0x7F) + 1
    return 0, 0


def _has_deep_tiles(image: Image.Image) -> bool:
    """Whether Pillow reads a part of the image from 16 bits into 8."""
    for _, _, _, arguments in getattr(image, "tile", ()):
        mode, *more = arguments if isinstance(arguments, tuple) and arguments else (arguments,)
        is_deep_map = image.format == "PPM" and more and more[0] not in (1, 255)
        if is_deep_map or (isinstance(mode, str) and ";16" in mode):
            return True
    return False


def _check(image: Image.Image, file: BinaryIO | Path) -> None:
    channels, bits = _stored(file) if image.format in ("TIFF", "JPEG2000") else (0, 0)
    if image.mode == "F" or image.mode.startswith("I"):
        bits = 16 if image.mode.startswith("I;16") else 32
    elif _has_deep_tiles(image):
        bits = 16
    if bits > 8:
        raise InputError(f"its pixels have {bits} bits, expected 8: scale them by the range that they use")
    if channels > 4:
        raise InputError(f"it has {channels} channels, expected 1, 3 or 4")
    shorter, longer = sorted(image.size)
    if longer > _MAX_RATIO * shorter:
        raise InputError(
            f"it has {image.width} x {image.height} pixels, expected a longer side of at most {_MAX_RATIO} "
            "times the shorter one"
        )
