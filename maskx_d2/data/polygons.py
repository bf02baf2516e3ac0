"""Masks as polygons."""

import math

import numpy as np
import pycocotools.mask as mask_util
from contourpy import FillType, contour_generator


def to_polygons(rle: dict) -> list[list[float]]:
    """
    The outlines of a mask along the edges of its pixels, with cut corners; pycocotools turns them back into
    the same mask. COCO polygons have no holes, so a part with a hole is cut in two.

    Args:
        rle: compressed RLE.

    Returns:
        ``[x, y, x, y, ...]`` for each part, in pixels, where (0, 0) is the top-left corner of the image.
    """
    x, y, width, height = (int(value) for value in mask_util.toBbox(rle))
    mask = mask_util.decode(rle)[y : y + height, x : x + width]
    return [(outline + np.array([x, y])).ravel().tolist() for outline in _outlines(mask)]


def _outlines(mask: np.ndarray) -> list[np.ndarray]:
    """(H, W) -> (number of points, 2) of each part."""
    # Values are at pixel centres, and outlines run half-way to the neighbouring pixels.
    padded = np.pad(mask, 1).astype(float)
    contours = contour_generator(z=padded, fill_type=FillType.OuterOffset).filled(0.5, math.inf)
    outer = []
    for points, ends in zip(*contours, strict=True):
        if len(ends) > 2:
            column = math.ceil(points[ends[1] :, 0].min()) - 1
            left, right = _outlines(mask[:, :column]), _outlines(mask[:, column:])
            return [*left, *(outline + np.array([column, 0]) for outline in right)]
        outer.append(_corners(points[:-1]) - 0.5)  # the last point is the first again
    return outer


def _corners(outline: np.ndarray) -> np.ndarray:
    """(N, 2) -> (M, 2), without the points between others on a straight line."""
    before, behind = outline - np.roll(outline, 1, 0), np.roll(outline, -1, 0) - outline
    turn = before[:, 0] * behind[:, 1] - before[:, 1] * behind[:, 0]
    return outline[turn != 0]
