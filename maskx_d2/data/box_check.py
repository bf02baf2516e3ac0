"""Compares boxes with the bounds of their masks: a box in another form or of another object is an error."""

from collections.abc import Iterator

import numpy as np

from maskx_d2.data.coco_format import CocoFile
from maskx_d2.data.mask_measures import MaskMeasures

_LOOSE = 1.0
"""Pixels by which a box may be smaller than its mask on each side."""

_FEW = 3
_SMALL_IMAGE = 8  # pixels; in smaller ones, objects of a pixel are possible

_FORMS = {
    "x0, y0, x1, y1": lambda b, _: np.concatenate([b[:2], b[2:] - b[:2]]),
    "y, x, height, width": lambda b, _: b[[1, 0, 3, 2]],
    "y0, x0, y1, x1": lambda b, _: np.concatenate([b[[1, 0]], b[[3, 2]] - b[[1, 0]]]),
    "centre x, centre y, width, height": lambda b, _: np.concatenate([b[:2] - b[2:] / 2, b[2:]]),
    "fractions of the image's width and height": lambda b, size: b * np.tile(size, 2),
    "fractions of the image, x and y of the centre": lambda b, size: (
        np.concatenate([b[:2] - b[2:] / 2, b[2:]]) * np.tile(size, 2)
    ),
}


def misplaced_boxes(file: CocoFile, measures: MaskMeasures) -> Iterator[tuple[int, str]]:
    """
    Find boxes that do not hold their mask, and those that fit it only if they are read in another form.

    Args:
        file: an annotation file.
        measures: of its masks.

    Yields:
        The index of an annotation, and what is wrong with its box, as the end of a sentence.
    """
    boxes, bounds, sizes = file.boxes, measures.bounds, file.image_sizes
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    has_both = measures.has_pixels & (boxes[:, 2:] > 0).all(1) & (bounds[:, 2:] > bounds[:, :2]).all(1)
    has_both &= ~np.array([bool(a.iscrowd) for a in file.annotations], bool)
    wider = corners + np.array([-_LOOSE, -_LOOSE, _LOOSE, _LOOSE])
    share = _intersection(wider, bounds) / np.maximum(_area(bounds), 1e-9)
    # x0, y0, x1, y1 read as x, y, width, height always holds the mask.
    as_corners = _iou(np.clip(boxes, 0, np.tile(sizes, 2)), bounds)
    clipped = np.clip(corners, 0, np.tile(sizes, 2))
    are_corners = (as_corners >= 0.9) & (_iou(clipped, bounds) < 0.75)
    for index in np.flatnonzero(has_both & ((share < 0.5) | are_corners)).tolist():
        x0, y0, x1, y1 = (round(value, 1) for value in bounds[index].tolist())
        cause = _cause(index, file, boxes, bounds, sizes[index])
        reach = f"({x0:g}, {y0:g}) to ({x1:g}, {y1:g})"
        yield index, f"has the bbox {file.annotations[index].bbox}, but its mask is at {reach}{cause}"


def are_loose(file: CocoFile, measures: MaskMeasures) -> np.ndarray:
    """(number of annotations,) bool: whether the bounds of the mask take less than a quarter of the box."""
    boxes = file.boxes
    share = _area(measures.bounds) / np.maximum(boxes[:, 2:].prod(1), 1e-9)
    return measures.has_pixels & (share < 0.25) & (boxes[:, 2:] > 0).all(1)


def relative_boxes(file: CocoFile) -> tuple[int, str] | None:
    """
    Find coordinates from 0 to 1 in place of pixels: the index of the first such annotation and what is
    wrong with its box, as the end of a sentence, if they are most of the file.
    """
    boxes, sizes, number = file.boxes, file.image_sizes, len(file.annotations)
    is_small = (np.abs(boxes) <= 1.01).all(1) & (sizes.min(1) >= _SMALL_IMAGE)
    if 2 * is_small.sum() <= number:
        return None
    index = int(is_small.argmax())
    return index, (
        f"has the bbox {file.annotations[index].bbox}; {is_small.sum()} of {number} boxes have coordinates "
        "from 0 to 1: they seem to be fractions of the image's size, expected pixels"
    )


def boxes_of_larger_images(file: CocoFile) -> tuple[int, str] | None:
    """
    Like :func:`relative_boxes`, for boxes that reach far outside their image: the images were made smaller
    after they were labelled, or they are others.
    """
    boxes, sizes, number = file.boxes, file.image_sizes, len(file.annotations)
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    is_outside = ((low < -0.1 * sizes) | (high > 1.1 * sizes)).any(1) & (sizes.min(1) > 0)
    if is_outside.sum() < _FEW or 3 * is_outside.sum() <= number:
        return None
    index = int(is_outside.argmax())
    return index, (
        f"has the bbox {file.annotations[index].bbox} in an image of {sizes[index, 0]:g} x "
        f"{sizes[index, 1]:g} pixels; {is_outside.sum()} of {number} boxes reach far outside their image, "
        "which seems to have been made smaller after labelling"
    )


def _cause(index: int, file: CocoFile, boxes: np.ndarray, bounds: np.ndarray, size: np.ndarray) -> str:
    """The likely cause, as the end of a sentence."""
    for form, convert in _FORMS.items():
        x, y, width, height = convert(boxes[index], size).tolist()
        if _iou(np.array([x, y, x + width, y + height]), bounds[index]) >= 0.9:
            as_expected = [round(value, 1) for value in (x, y, width, height)]
            return f": the bbox seems to be {form}, expected x, y, width, height in pixels: {as_expected}"
    x, y, width, height = boxes[index].tolist()
    others = np.flatnonzero(file.image_of == file.image_of[index])
    fits = _iou(np.array([x, y, x + width, y + height]), bounds[others])
    if len(others) and fits.max() >= 0.9:
        return f": the bbox seems to be that of annotation {file.annotations[others[fits.argmax()]].id}"
    return ": they seem to be of different objects or sizes of the image"


def _area(boxes: np.ndarray) -> np.ndarray:
    """Of (..., 4), as x0, y0, x1, y1."""
    return (boxes[..., 2:] - boxes[..., :2]).clip(min=0).prod(-1)


def _intersection(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    return (high - low).clip(min=0).prod(-1)


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    both = _intersection(a, b)
    return both / np.maximum(_area(a) + _area(b) - both, 1e-9)
