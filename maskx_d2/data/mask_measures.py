"""Measures of masks as an annotation file has them: where they are, and whether they have a pixel."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pycocotools.mask as mask_util

from maskx_d2.data.coco_format import LARGEST, MIN_POLYGON, polygons_with_area
from maskx_d2.data.rle import check_rle, compressed, is_image_size

Mask = list[list[float]] | Mapping | None
"""Polygons, RLE, or none."""

_AT_ONCE = 50_000  # masks: all coordinates of a large file together would take too much memory


@dataclass(frozen=True)
class MaskMeasures:
    """Of N masks."""

    has_pixels: np.ndarray
    """(N,) bool: whether pycocotools makes a mask of at least one pixel in the image of it."""

    bounds: np.ndarray
    """(N, 4) float64: x0, y0, x1, y1 of its part in the image."""

    is_rectangle: np.ndarray
    """(N,) bool: whether it fills its bounds."""

    is_malformed: np.ndarray
    """(N,) bool: whether a polygon is not a list of x, y, x, y, ..."""

    fits: np.ndarray
    """
    (N,) bool: whether its polygons do not reach far outside the image, and are not too long for it:
    pycocotools takes memory for each pixel of an outline.
    """

    rle_errors: dict[int, str]
    """What is wrong with the RLE masks that cannot be read; see :func:`maskx_d2.data.rle.check_rle`."""

    @classmethod
    def of(cls, masks: Sequence[Mask], sizes: np.ndarray) -> "MaskMeasures":
        """
        Args:
            masks: N of them.
            sizes: (N, 2), width and height of the image of each. Where no image can have that size, only
                ``is_malformed`` and ``rle_errors`` mean something.
        """
        number = len(masks)
        measures = cls(
            has_pixels=np.zeros(number, bool),
            bounds=np.zeros((number, 4)),
            is_rectangle=np.zeros(number, bool),
            is_malformed=np.zeros(number, bool),
            fits=np.ones(number, bool),
            rle_errors={},
        )
        for start in range(0, number, _AT_ONCE):
            part = range(start, min(start + _AT_ONCE, number))
            measures._measure_polygons(masks, [i for i in part if isinstance(masks[i], list)], sizes)
            measures._measure_rles(masks, [i for i in part if isinstance(masks[i], Mapping)], sizes)
        return measures

    def _measure_polygons(self, masks: Sequence[Mask], indices: list[int], sizes: np.ndarray) -> None:
        polygons = list(itertools.chain.from_iterable(masks[i] for i in indices))
        owners = np.repeat(np.array(indices, np.int64), [len(masks[i]) for i in indices])
        lengths = np.fromiter(map(len, polygons), np.int64, len(polygons))
        is_even = lengths % 2 == 0
        self.is_malformed[owners[~is_even]] = True
        used = is_even & (lengths >= MIN_POLYGON)
        for place in np.flatnonzero(is_even & ~used):
            if not all(-LARGEST < value < LARGEST for value in polygons[place]):
                self.is_malformed[owners[place]] = True
        if used.any():
            points = np.fromiter(itertools.chain.from_iterable(itertools.compress(polygons, used)), float)
            with np.errstate(invalid="ignore", over="ignore"):
                self._measure_points(points.reshape(-1, 2), lengths[used] // 2, owners[used], sizes)
        for i in indices:
            # Most masks are measured by their outlines alone.
            if not (self.has_pixels[i] or self.is_malformed[i]) and self.fits[i]:
                self.has_pixels[i] = _has_pixels(masks[i], sizes[i])

    def _measure_points(
        self, points: np.ndarray, num_points: np.ndarray, owners: np.ndarray, sizes: np.ndarray
    ) -> None:
        """
        Args:
            points: (number of points, 2), of all polygons.
            num_points: (P,), of each polygon.
            owners: (P,), the index of its mask.
            sizes: see :meth:`of`.
        """
        starts = np.cumsum(num_points) - num_points
        following = np.arange(1, len(points) + 1)
        following[starts + num_points - 1] = starts
        steps = points[following] - points
        outline = np.add.reduceat(np.abs(steps).max(1), starts)
        area = np.abs(np.add.reduceat(points[:, 0] * steps[:, 1] - points[:, 1] * steps[:, 0], starts)) / 2
        low, high = np.minimum.reduceat(points, starts), np.maximum.reduceat(points, starts)
        of_image = sizes[owners]
        side, longest = of_image.max(1), 4 * of_image.prod(1) + 10 * of_image.sum(1)
        are_numbers = (low > -LARGEST).all(1) & (high < LARGEST).all(1)
        fit = (low.min(1) >= -side) & (high.max(1) <= 2 * side) & (outline <= longest)
        self.is_malformed[owners[~are_numbers]] = True
        self.fits[owners[are_numbers & ~fit]] = False
        # An outline of length l around an area a holds a disc of radius a / l. One of radius 1 has a pixel,
        # unless the outline is drawn twice, by which the two areas cancel out.
        is_drawn_twice = (points[starts] == points[starts + num_points // 2]).all(1)
        inside = (low >= 0).all(1) & (high <= of_image).all(1)
        self.has_pixels[owners[inside & (area >= 2 * outline) & ~is_drawn_twice]] = True
        limits = np.concatenate([of_image, of_image], axis=1)
        clipped = np.clip(np.concatenate([low, high], axis=1), 0, limits)
        firsts = np.flatnonzero(np.diff(owners, prepend=-1))  # an owner's polygons follow each other
        self.bounds[owners[firsts], :2] = np.minimum.reduceat(clipped[:, :2], firsts)
        self.bounds[owners[firsts], 2:] = np.maximum.reduceat(clipped[:, 2:], firsts)
        is_alone = np.diff(firsts, append=len(owners)) == 1
        filled = (area >= 0.99 * (high - low).prod(1)) & (area > 0)
        self.is_rectangle[owners[firsts]] = is_alone & filled[firsts]

    def _measure_rles(self, masks: Sequence[Mask], indices: list[int], sizes: np.ndarray) -> None:
        for i in indices:
            rle, (width, height) = masks[i], sizes[i].tolist()
            try:
                check_rle(rle)
            except ValueError as error:
                self.rle_errors[i] = str(error)
                continue
            if list(rle["size"]) != [height, width]:
                if is_image_size(int(height), int(width)):
                    self.rle_errors[i] = f"has RLE of size {list(rle['size'])}, expected " + str(
                        [int(height), int(width)]
                    )
                continue
            whole = compressed(rle, int(height), int(width))
            x, y, w, h = mask_util.toBbox(whole).tolist()
            self.has_pixels[i] = w > 0
            self.bounds[i] = x, y, x + w, y + h
            self.is_rectangle[i] = w > 0 and mask_util.area(whole) == w * h


def _has_pixels(mask: list[list[float]], size: np.ndarray) -> bool:
    width, height = map(int, size)
    polygons = polygons_with_area(mask)
    if not polygons or not is_image_size(height, width):
        return False
    return mask_util.area(compressed(polygons, height, width)) > 0
