import numpy as np
import pycocotools.mask as mask_util
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from maskx_d2.data.rle import check_rle, encode_part


def masks():
    sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))
    return st.tuples(sizes, st.integers(0, 2**32 - 1), st.floats(0, 1)).map(
        lambda drawn: (np.random.default_rng(drawn[1]).random(drawn[0]) < drawn[2]).astype(np.uint8)
    )


def compressed(mask):
    rle = mask_util.encode(np.asfortranarray(mask))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def uncompressed(mask):
    """By a plain loop over the columns."""
    runs, last = [0], 0
    for value in mask.flatten(order="F").tolist():
        if value != last:
            runs.append(0)
            last = value
        runs[-1] += 1
    return {"size": list(mask.shape), "counts": runs}


@pytest.mark.fuzz
@given(masks())
def test_every_mask_that_pycocotools_writes_is_accepted_in_both_forms(mask):
    check_rle(compressed(mask))
    check_rle({**compressed(mask), "counts": compressed(mask)["counts"].encode()})
    check_rle(uncompressed(mask))


@pytest.mark.fuzz
@given(masks(), st.tuples(*[st.integers(0, 3)] * 4))
def test_a_part_is_encoded_as_pycocotools_encodes_the_image_that_it_is_in(mask, around):
    left, right, top, bottom = around
    image = np.pad(mask, ((top, bottom), (left, right)))
    height, width = image.shape
    assert encode_part(mask, left=left, top=top, height=height, width=width) == compressed(image)


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0), (2, 2)])
def test_a_part_without_foreground_is_an_empty_mask(shape):
    empty = compressed(np.zeros((5, 7), np.uint8))
    assert encode_part(np.zeros(shape), left=4, top=2, height=5, width=7) == empty


@pytest.mark.fuzz
@given(masks(), st.data())
def test_counts_that_are_cut_off_at_any_length_are_refused(mask, data):
    rle = compressed(mask)
    length = data.draw(st.integers(0, len(rle["counts"]) - 1))
    with pytest.raises(ValueError, match=r"has (compressed )?RLE"):
        check_rle({**rle, "counts": rle["counts"][:length]})


@pytest.mark.fuzz
@given(masks(), st.data())
def test_of_changed_counts_what_is_accepted_is_the_mask_that_pycocotools_makes_of_it(mask, data):
    rle = compressed(mask)
    text = list(rle["counts"])
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(text) - 1))
        text[place] = data.draw(st.characters(min_codepoint=32, max_codepoint=126))
    changed = {**rle, "counts": "".join(text)}
    try:
        check_rle(changed)
    except ValueError:
        return
    # Written again by pycocotools from the pixels, it has the same area and box.
    again = mask_util.encode(mask_util.decode(changed))
    assert mask_util.area(changed) == mask_util.area(again) == mask_util.decode(changed).sum()


@pytest.mark.fuzz
@given(st.text(max_size=12), st.lists(st.integers(-5, 50), min_size=2, max_size=2))
@example("", [0, 0])
@example("0" * 9, [3, 3])
@example("P" * 40, [3, 3])
def test_any_text_is_accepted_only_if_it_covers_the_image(text, size):
    try:
        check_rle({"size": size, "counts": text})
    except ValueError:
        return
    assert mask_util.decode({"size": size, "counts": text}).shape == tuple(size)


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        ({"counts": [9]}, "has RLE without counts and size"),
        ({"size": [3, 3]}, "has RLE without counts and size"),
        ({"size": [3, 3], "counts": [4.5, 4.5]}, "whole numbers of 0 or more"),
        ({"size": [3, 3], "counts": [10, -1]}, "whole numbers of 0 or more"),
        ({"size": [3, 3], "counts": [True] * 9}, "whole numbers of 0 or more"),
        ({"size": [3, 3], "counts": [8]}, "do not add up to 3 x 3 pixels"),
        ({"size": [3.0, 3], "counts": [9]}, "expected .height, width. in pixels"),
        ({"size": [10**5, 10**5], "counts": [10**10]}, "expected .height, width. in pixels"),
        ({"size": [10**400, 1], "counts": [1]}, "expected .height, width. in pixels"),
        ({"size": [3, 3], "counts": "é"}, "characters that no RLE has"),
    ],
)
def test_what_is_wrong_is_said(rle, message):
    with pytest.raises(ValueError, match=message):
        check_rle(rle)
