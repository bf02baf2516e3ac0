import numpy as np
import pycocotools.mask as mask_util
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskx_d2.data.mask_measures import MaskMeasures

from . import awkward

WIDTH, HEIGHT = 40, 30
coordinates = st.floats(-20, 60, allow_nan=False, width=32) | st.integers(-3, 43).map(float)
polygons = st.lists(coordinates, min_size=6, max_size=20).map(lambda values: values[: len(values) // 2 * 2])


def pixels(mask):
    """What pycocotools makes of it."""
    if isinstance(mask, list):
        mask = mask_util.merge(mask_util.frPyObjects(mask, HEIGHT, WIDTH))
    return mask_util.decode(mask).astype(bool)


def measure(*masks):
    return MaskMeasures.of(masks, np.tile([WIDTH, HEIGHT], (len(masks), 1)))


@given(st.lists(st.lists(polygons, min_size=1, max_size=3), min_size=1, max_size=5))
def test_they_are_those_of_the_pixels_of_polygons(masks):
    measures = measure(*masks)
    for index, mask in enumerate(masks):
        if not measures.fits[index]:
            continue
        found = pixels(mask)
        assert measures.has_pixels[index] == found.any()
        if found.any():
            rows, columns = np.flatnonzero(found.any(1)), np.flatnonzero(found.any(0))
            x0, y0, x1, y1 = measures.bounds[index]
            # The outline is where pixels begin and end, give or take the rounding of both.
            assert x0 <= columns[0] + 1 and y0 <= rows[0] + 1
            assert x1 >= columns[-1] - 0.1 and y1 >= rows[-1] - 0.1


@given(st.integers(0, 2**32 - 1), st.floats(0, 0.2))
def test_they_are_those_of_the_pixels_of_rle(seed, share):
    mask = np.random.default_rng(seed).random((HEIGHT, WIDTH)) < share
    rle = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    measures = measure({"size": list(rle["size"]), "counts": rle["counts"].decode()})
    assert measures.has_pixels[0] == mask.any()
    if mask.any():
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        expected = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        assert measures.bounds[0].tolist() == expected


@pytest.mark.parametrize(
    ("polygon", "is_rectangle"),
    [
        ([5, 5, 20, 5, 20, 25, 5, 25], True),
        ([5, 5, 20, 5, 20, 25, 5, 25, 5, 5], True),
        ([5, 5, 20, 5, 20, 25, 5, 20], False),
        ([5, 5, 20, 5, 20, 25], False),
    ],
)
def test_rectangles(polygon, is_rectangle):
    measures = measure([polygon], [polygon, [25, 25, 30, 25, 30, 29, 25, 29]])
    assert measures.is_rectangle.tolist() == [is_rectangle, False]


def test_rectangles_as_rle():
    measures = MaskMeasures.of(
        [awkward.compressed_rle(), awkward.uncompressed_rle()],
        np.tile([awkward.WIDTH, awkward.HEIGHT], (2, 1)),
    )
    assert measures.is_rectangle.all()
    assert measures.bounds.tolist() == [[10, 5, 30, 15]] * 2
