"""Pictures of detections: masks, boxes, names and scores, coloured by what their class was trained with."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from maskx_d2.data.printable import printable

WITH_MASKS_COLOUR = (255, 140, 0)
BOXES_ONLY_COLOUR = (0, 200, 255)
_LEGEND = (("trained with masks", WITH_MASKS_COLOUR), ("boxes only", BOXES_ONLY_COLOUR))
_FONT_SIZE = 14
_MASK_OPACITY = 0.45
_SHADES = (1.0, 0.62, 1.5)  # of a colour, for neighbours; towards black below 1, towards white above

_Rectangle = tuple[float, float, float, float]  # x0, y0, x1, y1


@dataclass(frozen=True)
class ClassStyle:
    """How the detections of a dataset's classes are labelled and coloured."""

    names: Mapping[int, str]
    """Category id -> name."""

    with_masks: frozenset[int]
    """Ids of the categories that the model was trained on with masks."""

    def colour(self, category_id: int, shade: float = 1.0) -> tuple[int, int, int]:
        """RGB. A shade below 1 is darker, one above 1 is lighter."""
        colour = WITH_MASKS_COLOUR if category_id in self.with_masks else BOXES_ONLY_COLOUR
        towards, share = (0, 1 - shade) if shade < 1 else (255, shade - 1)
        return tuple(round(value + (towards - value) * share) for value in colour)


def draw_detections(
    image: Image.Image, detections: Sequence[Mapping], style: ClassStyle, *, scale: float = 1
) -> Image.Image:
    """
    Args:
        image: the picture that was detected in.
        detections: in COCO's results format for this image (``category_id``, ``bbox`` in XYWH, and if
            there are such ``score``, ``segmentation`` as compressed RLE of the image's size, and
            ``others``, see :func:`maskx_d2.evaluation.merging.merge_regions`).
        style: names and colours.
        scale: how much larger than the image the result shall be.

    Returns:
        A new RGB picture. The best detections are drawn on top. Those of one colour whose boxes overlap
        differ in shade.
    """
    size = round(image.width * scale), round(image.height * scale)
    canvas = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    ordered = sorted(detections, key=lambda d: d.get("score", 1))
    colours = _distinct_colours(ordered, style)
    for detection, colour in zip(ordered, colours, strict=True):
        if "segmentation" in detection:
            mask = Image.fromarray(mask_util.decode(detection["segmentation"]) * np.uint8(255))
            mask = mask.resize(size, Image.Resampling.BILINEAR).point(lambda v: 255 * (v > 127))
            _paint_mask(canvas, mask, colour)
    draw = ImageDraw.Draw(canvas)
    for detection, colour in zip(ordered, colours, strict=True):
        x, y, width, height = (value * scale for value in detection["bbox"])
        draw.rectangle([x, y, x + width, y + height], outline=colour, width=1)
    taken: list[_Rectangle] = []
    for detection, colour in zip(reversed(ordered), reversed(colours), strict=True):
        text = printable(style.names[detection["category_id"]])
        if "score" in detection:
            text = f"{text} {detection['score']:.0%}"
        if detection.get("others"):
            text = f"{text} +{detection['others']}"
        box = [value * scale for value in detection["bbox"]]
        taken.append(_label(draw, box, text, colour, canvas.size, taken))
    return canvas


def with_legend(picture: Image.Image) -> Image.Image:
    """The picture with a line below that tells the two colours, and white beside it if it is narrower."""
    line, gap = _FONT_SIZE + 10, 16
    widths = [_FONT_SIZE + 5 + math.ceil(_font().getlength(text)) + gap for text, _ in _LEGEND]
    canvas = Image.new("RGB", (max(picture.width, sum(widths)), picture.height + line), "white")
    canvas.paste(picture)
    draw = ImageDraw.Draw(canvas)
    x, top = 6, picture.height + 6
    for (text, colour), width in zip(_LEGEND, widths, strict=True):
        draw.rectangle([x, top, x + _FONT_SIZE, top + _FONT_SIZE - 2], fill=colour)
        draw.text((x + _FONT_SIZE + 5, picture.height + line / 2), text, "black", _font(), "lm")
        x += width
    return canvas


def side_by_side(panels: Mapping[str, Image.Image]) -> Image.Image:
    """Pictures of one height in a row, each with its title above, and the legend below."""
    gap, line = 8, _FONT_SIZE + 10
    width = sum(panel.width for panel in panels.values()) + gap * (len(panels) - 1)
    height = max(panel.height for panel in panels.values())
    canvas = Image.new("RGB", (width, height + line), "white")
    draw = ImageDraw.Draw(canvas)
    x = 0
    for title, panel in panels.items():
        draw.text((x + panel.width / 2, line / 2), title, "black", _font(), "mm")
        canvas.paste(panel, (x, line))
        x += panel.width + gap
    return with_legend(canvas)


def draw_side_by_side(
    image: Image.Image, found: Mapping[str, Sequence[Mapping]], style: ClassStyle, *, scale: float = 1
) -> Image.Image:
    """:func:`side_by_side` of an image with each of several results, which are given by title."""
    return side_by_side(
        {
            title: draw_detections(image, detections, style, scale=scale)
            for title, detections in found.items()
        }
    )


def by_image(detections: Iterable[dict]) -> dict[int, list[dict]]:
    """Annotations or detections of each image id that occurs."""
    of_image: dict[int, list[dict]] = {}
    for detection in detections:
        of_image.setdefault(detection["image_id"], []).append(detection)
    return of_image


def _distinct_colours(detections: Sequence[Mapping], style: ClassStyle) -> list[tuple[int, int, int]]:
    """For each the first shade of its colour that is free where it is, or else the least used."""
    corners = [(x, y, x + width, y + height) for x, y, width, height in (d["bbox"] for d in detections)]
    colours: list[tuple[int, int, int]] = []
    for detection, box in zip(detections, corners, strict=True):
        shades = [style.colour(detection["category_id"], shade) for shade in _SHADES]
        near = [c for c, other in zip(colours, corners, strict=False) if _overlap(box, other)]
        colours.append(min(shades, key=near.count))
    return colours


def _paint_mask(canvas: Image.Image, mask: Image.Image, colour: tuple[int, int, int]) -> None:
    fill = Image.new("RGB", canvas.size, colour)
    canvas.paste(fill, mask=mask.point(lambda v: round(v * _MASK_OPACITY)))
    # The outline is what the erosion takes away.
    eroded = mask.filter(ImageFilter.MinFilter(3))
    outline = np.asarray(mask) & ~np.asarray(eroded)
    canvas.paste(fill, mask=Image.fromarray(outline))


def _label(draw, box, text: str, colour, canvas_size, taken: Sequence[_Rectangle]) -> _Rectangle:
    """Write a box's label above it, or where that is taken below or inside it."""
    left, top, right, bottom = draw.textbbox((0, 0), text, _font())
    width, height = right - left + 4, bottom - top + 4
    x = min(max(box[0], 0), max(canvas_size[0] - width, 0))
    places = []
    for y in (box[1] - height, box[1] + box[3], box[1], box[1] + box[3] - height):
        y = min(max(y, 0), max(canvas_size[1] - height, 0))
        places.append((x, y, x + width, y + height))
    place = next((p for p in places if not any(_overlap(p, other) for other in taken)), places[0])
    draw.rectangle(place, fill=colour)
    draw.text((place[0] + 2 - left, place[1] + 2 - top), text, "black", _font())
    return place


def _overlap(a: _Rectangle, b: _Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(_FONT_SIZE)
