"""Draws detections: masks, boxes, names and scores. Colours show which classes were trained with masks."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image, ImageDraw, ImageFont

from maskx_d2.data.printable import printable
from maskx_d2.evaluation.fonts import font_for

# Warm and cold colours, to tell apart the two sides, and neighbours of one side.
WITH_MASKS_COLOURS = ((255, 140, 0), (226, 60, 30), (255, 221, 51), (158, 84, 16), (255, 190, 140))
BOXES_ONLY_COLOURS = ((0, 200, 255), (40, 90, 255), (150, 240, 240), (0, 130, 150), (150, 120, 255))
BY_TEACHER_COLOURS = ((90, 200, 60), (20, 140, 70), (190, 235, 120), (90, 120, 30), (150, 255, 190))
WITH_MASKS_COLOUR, BOXES_ONLY_COLOUR = WITH_MASKS_COLOURS[0], BOXES_ONLY_COLOURS[0]
_LEGEND = (("trained with masks", WITH_MASKS_COLOURS), ("boxes only", BOXES_ONLY_COLOURS))
_BY_TEACHER = ("masks by a teacher", BY_TEACHER_COLOURS)
_FONT_SIZE = 14
_MASK_OPACITY = 0.45
_THICK_FROM = 400  # outlines are thick if the longer side of a picture has this many pixels

_Colour = tuple[int, int, int]
_Rectangle = tuple[float, float, float, float]  # x0, y0, x1, y1


@dataclass(frozen=True)
class ClassStyle:
    """How the detections of a dataset's classes are labelled and coloured."""

    names: Mapping[int, str]
    """Category id -> name."""

    with_masks: frozenset[int]
    """Ids of the categories that the model was trained on with masks."""

    by_teacher: frozenset[int] = frozenset()
    """Ids of the others that it was trained on with masks by a teacher."""

    def colours(self, category_id: int) -> tuple[_Colour, ...]:
        """RGB; the colours after the first are for neighbours of the same side."""
        if category_id in self.by_teacher:
            return BY_TEACHER_COLOURS
        return WITH_MASKS_COLOURS if category_id in self.with_masks else BOXES_ONLY_COLOURS


def draw_detections(
    image: Image.Image, detections: Sequence[Mapping], style: ClassStyle, *, scale: float = 1
) -> Image.Image:
    """
    Args:
        image: the image of the detections.
        detections: detections in this image, in COCO's results format (``category_id``, ``bbox`` in XYWH,
            and optionally ``score``, ``segmentation`` as compressed RLE of the image's size, and
            ``others``, see :func:`maskx_d2.evaluation.merging.merge_regions`).
        style: names and colours.
        scale: size of the result relative to the image.

    Returns:
        A new RGB picture. Boxes of the best detections and the smallest masks are drawn on top. Detections
        of one side whose boxes overlap have different colours; labels avoid each other.
    """
    import supervision  # not every user of this module draws

    size = round(image.width * scale), round(image.height * scale)
    canvas = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    if not detections:
        return canvas
    ordered = sorted(detections, key=lambda d: d.get("score", 1))
    corners = [(x, y, x + width, y + height) for x, y, width, height in (d["bbox"] for d in ordered)]
    found = supervision.Detections(
        xyxy=np.array(corners, dtype=float) * scale,
        class_id=np.array([d["category_id"] for d in ordered]),
    )
    colours = [supervision.Color(*rgb) for rgb in _distinct_colours(ordered, corners, style)]
    options = {"color": supervision.ColorPalette(colours), "color_lookup": supervision.ColorLookup.INDEX}
    masked = [i for i, d in enumerate(ordered) if "segmentation" in d]
    if masked:
        with_masks, indices = found[masked], np.array(masked)
        with_masks.mask = np.stack([_mask(ordered[i]["segmentation"], size) for i in masked])
        for annotator in (
            supervision.MaskAnnotator(opacity=_MASK_OPACITY, **options),
            supervision.PolygonAnnotator(thickness=2 if max(size) >= _THICK_FROM else 1, **options),
        ):
            canvas = annotator.annotate(canvas, with_masks, custom_color_lookup=indices)
    canvas = supervision.BoxAnnotator(thickness=1, **options).annotate(canvas, found)
    texts = [_text(detection, style) for detection in ordered]
    fonts = [font_for(text).path for text in texts]
    for path in dict.fromkeys(fonts):
        indices = [i for i, font in enumerate(fonts) if font == path]
        labels = supervision.RichLabelAnnotator(
            text_color=supervision.Color.BLACK,
            font_path=path,
            font_size=_FONT_SIZE,
            text_padding=2,
            smart_position=True,
            **options,
        )
        canvas = labels.annotate(
            canvas,
            found[indices],
            labels=[texts[i] for i in indices],
            custom_color_lookup=np.array(indices),
        )
    return canvas


def _mask(rle: Mapping, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool, as large as the picture."""
    mask = Image.fromarray(mask_util.decode(rle) * np.uint8(255))
    return np.asarray(mask.resize(size, Image.Resampling.BILINEAR)) > 127


def _text(detection: Mapping, style: ClassStyle) -> str:
    text = printable(style.names[detection["category_id"]])
    if "score" in detection:
        text = f"{text} {detection['score']:.0%}"
    return f"{text} +{detection['others']}" if detection.get("others") else text


def with_legend(picture: Image.Image, style: ClassStyle | None = None) -> Image.Image:
    """
    The picture with a legend of the colours below it, and padded if it is narrower than that.

    Args:
        picture: the picture.
        style: with classes trained by a teacher, the legend has their colours too.
    """
    legend = (*_LEGEND, _BY_TEACHER) if style is not None and style.by_teacher else _LEGEND
    line, gap, swatch = _FONT_SIZE + 10, 16, _FONT_SIZE // 2
    widths = [
        swatch * len(colours) + 5 + math.ceil(_font().getlength(text)) + gap for text, colours in legend
    ]
    canvas = Image.new("RGB", (max(picture.width, sum(widths)), picture.height + line), "white")
    canvas.paste(picture)
    draw = ImageDraw.Draw(canvas)
    x, top = 6, picture.height + 6
    for (text, colours), width in zip(legend, widths, strict=True):
        for place, colour in enumerate(colours):
            left = x + swatch * place
            draw.rectangle([left, top, left + swatch - 1, top + _FONT_SIZE - 2], fill=colour)
        left = x + swatch * len(colours) + 5
        draw.text((left, picture.height + line / 2), text, "black", _font(), "lm")
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
        draw.text((x + panel.width / 2, line / 2), title, "black", _font(title), "mm")
        canvas.paste(panel, (x, line))
        x += panel.width + gap
    return with_legend(canvas)


def draw_side_by_side(
    image: Image.Image, found: Mapping[str, Sequence[Mapping]], style: ClassStyle, *, scale: float = 1
) -> Image.Image:
    """Draw several results on the same image, and arrange them with :func:`side_by_side`."""
    return side_by_side(
        {
            title: draw_detections(image, detections, style, scale=scale)
            for title, detections in found.items()
        }
    )


def by_image(detections: Iterable[dict]) -> dict[int, list[dict]]:
    """Annotations or detections grouped by image id."""
    of_image: dict[int, list[dict]] = {}
    for detection in detections:
        of_image.setdefault(detection["image_id"], []).append(detection)
    return of_image


def _distinct_colours(
    detections: Sequence[Mapping], corners: Sequence[_Rectangle], style: ClassStyle
) -> list[_Colour]:
    """For each detection, the colour of its side that is used least by overlapping ones."""
    colours: list[_Colour] = []
    for detection, box in zip(detections, corners, strict=True):
        near = [c for c, other in zip(colours, corners, strict=False) if _overlap(box, other)]
        colours.append(min(style.colours(detection["category_id"]), key=near.count))
    return colours


def _overlap(a: _Rectangle, b: _Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _font(text: str = "") -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return font_for(text).of_size(_FONT_SIZE)
