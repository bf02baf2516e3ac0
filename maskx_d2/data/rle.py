"""
Run-length encoded masks, checked before pycocotools reads them: if the counts are cut off, it reads beyond
the end of the buffer and makes a mask of whatever is there.
"""

from collections.abc import Mapping
from reprlib import repr as shown

import numpy as np
import pycocotools.mask as mask_util

from maskx_d2.data.errors import InputError

MAX_PIXELS = 178_956_970
"""Of an image. Pillow refuses larger ones."""


def encode(mask: np.ndarray) -> dict:
    """
    Args:
        mask: (H, W); everything that is not 0 belongs to the object.

    Returns:
        Compressed RLE that can be written as JSON.
    """
    rle = mask_util.encode(np.asfortranarray(mask.astype(bool), dtype=np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}


def encode_part(mask: np.ndarray, *, left: int, top: int, height: int, width: int) -> dict:
    """
    Encode a mask whose foreground is within a part of the image: for a small object in a large image, much
    less work than :func:`encode`.

    Args:
        mask: (h, w), the part; everything that is not 0 belongs to the object.
        left, top: pixel of the image that is the first of the part.
        height, width: size of the image.

    Returns:
        Compressed RLE of the whole image that can be written as JSON.
    """
    rows, columns = mask.shape
    framed = np.zeros((columns, rows + 2), dtype=bool)
    framed[:, 1:-1] = mask.T
    # In RLE pixels are numbered down the columns. Where a run starts and the next one ends, in turn:
    column, row = np.divmod(np.flatnonzero(framed[:, 1:] != framed[:, :-1]), rows + 1)
    ends = (left + column) * height + top + row
    # A run that reaches the bottom continues at the top of the next column.
    continues = np.flatnonzero(ends[1:-1:2] == ends[2::2]) * 2 + 1
    ends = np.delete(ends, np.concatenate([continues, continues + 1]))
    runs = np.diff(ends, prepend=0, append=height * width)
    if len(runs) > 1 and runs[-1] == 0:
        runs = runs[:-1]
    rle = mask_util.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}


def compressed(segmentation: list[list[float]] | Mapping, height: int, width: int) -> Mapping:
    """
    Args:
        segmentation: polygons of three or more points each, or RLE of either form.
        height, width: size of the image.

    Returns:
        Compressed RLE; of polygons, that of their union.
    """
    if isinstance(segmentation, list):
        return mask_util.merge(mask_util.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return mask_util.frPyObjects(segmentation, height, width)
    return segmentation


def overlap(mask: Mapping, other: Mapping) -> float:
    """IoU of two masks of one image as compressed RLE; 0 if both are empty."""
    return mask_util.iou([mask], [other], [0]).item()


def check_rle(rle: Mapping) -> None:
    """
    Args:
        rle: ``{"size": [height, width], "counts": compressed (str or bytes) or a list}``.

    Raises:
        ValueError: the RLE is invalid. The message completes a sentence that starts with what has the RLE.
    """
    size, counts = rle.get("size"), rle.get("counts")
    if not isinstance(counts, str | bytes | list) or not isinstance(size, list | tuple) or len(size) != 2:
        raise InputError("has RLE without counts and size")
    if not is_image_size(*size):
        raise InputError(f"has RLE of the size {shown(size)}, expected [height, width] in pixels")
    if isinstance(counts, str | bytes):
        runs = _decompressed(counts)
    elif all(map(_is_run, counts)):
        runs = counts
    else:
        raise InputError("has RLE whose counts are not whole numbers of 0 or more")
    if min(runs, default=0) < 0 or sum(runs) != size[0] * size[1]:
        raise InputError(f"has RLE whose counts do not add up to {size[0]} x {size[1]} pixels")


def is_image_size(height, width) -> bool:
    """Whether an image can have this size in pixels."""
    sides = height, width
    if not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides):
        return False
    return height * width <= MAX_PIXELS


def _is_run(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _decompressed(counts: str | bytes) -> list[int]:
    """
    Lengths of the runs. Each character holds five bits of a number, lowest first, and a bit that says
    whether more follow. From the fourth on, each number is the difference to the last but one
    (pycocotools' ``rleFrString``).
    """
    try:
        data = counts.encode("ascii") if isinstance(counts, str) else counts
    except UnicodeEncodeError as error:
        raise InputError("has compressed RLE with characters that no RLE has") from error
    runs: list[int] = []
    value = shift = 0
    for byte in data:
        code = byte - 48
        if not 0 <= code < 64 or shift > 30:
            raise InputError("has compressed RLE with characters that no RLE has")
        value |= (code & 0x1F) << shift
        shift += 5
        if code & 0x20:
            continue
        if code & 0x10:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise InputError("has compressed RLE that is cut off")
    return runs
