import numpy as np
import pytest
from PIL import Image

from maskx_d2.evaluation.pictures import (
    BOXES_ONLY_COLOUR,
    WITH_MASKS_COLOUR,
    ClassStyle,
    draw_detections,
    side_by_side,
    with_legend,
)

from .synthetic import disk, rle

STYLE = ClassStyle(names={1: "cat", 2: "dog"}, with_masks=frozenset({1}))


def detection(category_id, mask):
    return {"category_id": category_id, "bbox": [40, 60, 60, 60], "score": 0.9, "segmentation": rle(mask)}


@pytest.mark.parametrize(("category_id", "colour"), [(1, WITH_MASKS_COLOUR), (2, BOXES_ONLY_COLOUR)])
@pytest.mark.parametrize("scale", [1, 2])
def test_the_mask_is_tinted_in_the_colour_of_its_side_and_the_rest_is_not(category_id, colour, scale):
    mask = disk(70, 90, 20)
    picture = draw_detections(
        Image.new("RGB", (160, 160), "black"), [detection(category_id, mask)], STYLE, scale=scale
    )
    assert picture.size == (160 * scale, 160 * scale)
    inside = np.array(picture.getpixel((70 * scale, 90 * scale)))
    np.testing.assert_allclose(inside, np.array(colour) * 0.45, atol=2)
    assert picture.getpixel((70 * scale, 68 * scale)) == (0, 0, 0)  # in the box, outside the mask
    assert picture.getpixel((150 * scale, 20 * scale)) == (0, 0, 0)
    assert picture.getpixel((40 * scale, 115 * scale)) == colour  # the box


def test_boxes_without_masks_and_an_image_without_detections_can_be_drawn():
    image = Image.new("L", (50, 40))
    assert draw_detections(image, [], STYLE).size == (50, 40)
    box_only = {"category_id": 2, "bbox": [5, 5, 20, 20]}
    assert draw_detections(image, [box_only], STYLE).getpixel((5, 24)) == BOXES_ONLY_COLOUR


def test_neighbours_of_one_side_differ_in_colour_and_others_do_not():
    def boxes(*corners):
        return [{"category_id": 1, "bbox": [x, y, 40, 40]} for x, y in corners]

    picture = draw_detections(
        Image.new("RGB", (200, 200)), boxes((100, 20), (110, 30), (120, 40), (100, 140)), STYLE
    )
    corners = [picture.getpixel(place) for place in ((100, 60), (110, 70), (159, 80), (100, 180))]
    assert len(set(corners[:3])) == 3 and corners[3] == WITH_MASKS_COLOUR
    # A and B stay apart: warm and cold.
    assert all(red > blue for red, _, blue in STYLE.colours(1))
    assert all(blue > red for red, _, blue in STYLE.colours(2))
    assert len({*STYLE.colours(1), *STYLE.colours(2)}) == 10


def test_as_many_neighbours_as_there_are_colours_can_be_told_apart():
    """Ten boxes on one another, five of each side."""
    detections = [
        {"category_id": 1 + i % 2, "bbox": [10 + 8 * i] * 2 + [150, 150], "score": 0.5} for i in range(10)
    ]
    picture = draw_detections(Image.new("RGB", (300, 300)), detections, STYLE)
    corners = [picture.getpixel((10 + 8 * i, 160 + 8 * i)) for i in range(10)]
    assert set(corners[::2]) == set(STYLE.colours(1)) and set(corners[1::2]) == set(STYLE.colours(2))


def test_legend_and_panels_keep_the_pictures():
    red, blue = Image.new("RGB", (300, 40), "red"), Image.new("RGB", (300, 40), "blue")
    assert with_legend(red).size[0] == 300 and with_legend(red).getpixel((5, 5)) == (255, 0, 0)
    both = side_by_side({"left": red, "right": blue})
    assert both.width == 608
    assert both.getpixel((150, 40)) == (255, 0, 0) and both.getpixel((450, 40)) == (0, 0, 255)


def test_classes_trained_by_a_teacher_have_colours_and_a_legend_of_their_own():
    style = ClassStyle(
        names={1: "cat", 2: "dog", 3: "hen"}, with_masks=frozenset({1}), by_teacher=frozenset({2})
    )
    assert not {*style.colours(2)} & {*style.colours(1), *style.colours(3)}
    assert all(green > max(red, blue) for red, green, blue in style.colours(2))
    picture = Image.new("RGB", (600, 30))
    colours = [
        {colour for _, colour in with_legend(picture, of_picture).crop((0, 30, 600, 54)).getcolors(999)}
        for of_picture in (STYLE, style)
    ]
    assert {*style.colours(2)} <= colours[1] and not {*style.colours(2)} & colours[0]


def test_the_legend_of_a_small_picture_is_whole():
    small, large = (with_legend(Image.new("RGB", (width, 30), "red")) for width in (40, 400))
    assert small.getpixel((39, 29)) == (255, 0, 0) and small.getpixel((41, 29)) == (255, 255, 255)
    cut = large.crop((0, 30, small.width, large.height))
    assert cut.tobytes() == small.crop((0, 30, *small.size)).tobytes()
    rest = large.crop((small.width, 30, *large.size))
    assert rest.getcolors() == [(rest.width * rest.height, (255, 255, 255))]


def test_a_label_says_how_many_others_there_are(monkeypatch):
    texts = []
    monkeypatch.setattr(
        "PIL.ImageDraw.ImageDraw.text", lambda self, xy, text, *args, **kw: texts.append(text)
    )
    box = {"category_id": 2, "bbox": [5, 5, 20, 20], "score": 0.51}
    draw_detections(Image.new("RGB", (90, 60)), [{**box, "others": 3}], STYLE)
    draw_detections(Image.new("RGB", (90, 60)), [{**box, "others": 0}], STYLE)
    assert texts == ["dog 51% +3", "dog 51%"]
