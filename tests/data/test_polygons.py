import numpy as np
import pycocotools.mask as mask_util
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from maskx_d2.data.polygons import to_polygons
from maskx_d2.data.rle import encode


def drawn(polygons, height, width):
    """By pycocotools."""
    return mask_util.decode(mask_util.merge(mask_util.frPyObjects(polygons, height, width)))


def ring():
    y, x = np.mgrid[:40, :50]
    radius = np.hypot(y - 19, x - 24)
    mask = (radius < 17) & (radius > 9)
    mask[18:21, 23:26] = True
    return mask


@pytest.mark.parametrize("kind", ["ring with a dot", "two parts", "one pixel", "all", "edge"])
def test_pycocotools_makes_the_same_mask_of_them(kind):
    mask = np.zeros((40, 50), bool)
    if kind == "ring with a dot":
        mask = ring()
    elif kind == "two parts":
        mask[3:9, 4:30] = mask[20:38, 10:17] = True
    elif kind == "one pixel":
        mask[7, 11] = True
    elif kind == "all":
        mask[:] = True
    else:
        mask[:, -3:] = mask[:2] = True
    polygons = to_polygons(encode(mask))
    assert all(len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in polygons)
    assert np.array_equal(drawn(polygons, 40, 50), mask)


def test_points_on_straight_lines_are_left_out():
    mask = np.zeros((40, 50), bool)
    mask[5:35, 10:40] = True
    (polygon,) = to_polygons(encode(mask))
    assert len(polygon) == 2 * 8  # corners are cut
    assert (min(polygon[::2]), max(polygon[::2])) == (10, 40)
    assert (min(polygon[1::2]), max(polygon[1::2])) == (5, 35)


def test_nothing_has_no_polygon():
    assert to_polygons(encode(np.zeros((4, 5)))) == []


@pytest.mark.fuzz
@given(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_any_mask_comes_back_within_its_outline(mask):
    polygons = to_polygons(encode(mask))
    again = drawn(polygons, *mask.shape).astype(bool) if polygons else np.zeros_like(mask)
    assert np.array_equal(again, mask)
