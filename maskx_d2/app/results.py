"""Selects the detected objects that the web page shows, and renders them as picture, list and JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pycocotools.mask as mask_util
from PIL import Image

from maskx_d2.data.printable import printable
from maskx_d2.evaluation.merging import readable_detections
from maskx_d2.evaluation.pictures import ClassStyle, draw_detections, with_legend

SIDES = {"all": "all classes", "A": "trained with masks", "B": "boxes only"}
"""Sides of the class split, and their titles."""

COLUMNS = ("class", "score", "trained with", "pixels", "of image")
_SHORTEST, _LONGEST = 640, 1600  # pixels of a picture's longer side


@dataclass(frozen=True)
class Choice:
    """Which objects to show."""

    min_score: float = 0.5
    most: int = 30
    """Maximum number, best first; see :func:`maskx_d2.evaluation.merging.readable_detections`."""

    class_name: str = ""
    """Text that the class name must contain, ignoring case."""

    side: str = "all"
    """A key of :data:`SIDES`."""


def choose(detections: Sequence[Mapping], style: ClassStyle, choice: Choice) -> list[Mapping]:
    """
    Args:
        detections: detections in one image, in COCO's results format.
        style: the classes.
        choice: which detections to show.

    Returns:
        The chosen detections, best first.
    """
    part = choice.class_name.strip().casefold()
    chosen = [
        detection
        for detection in detections
        if detection["score"] >= choice.min_score
        and part in style.names[detection["category_id"]].casefold()
        and choice.side in ("all", _side(detection, style))
    ]
    return readable_detections(chosen, len(style.names), top=choice.most)


def picture(image: Image.Image, detections: Sequence[Mapping], style: ClassStyle) -> Image.Image:
    """The image with its objects and the legend, scaled to a readable size."""
    longer = max(image.size)
    scale = min(max(longer, _SHORTEST), _LONGEST) / longer
    return with_legend(draw_detections(image, detections, style, scale=scale), style)


def table(detections: Sequence[Mapping], style: ClassStyle) -> list[list[str | int]]:
    """A row of :data:`COLUMNS` for each detection; without a mask the last two are dashes."""
    return [
        [
            printable(style.names[detection["category_id"]]),
            f"{detection['score']:.0%}",
            _trained_with(detection, style),
            *_area(detection),
        ]
        for detection in detections
    ]


def coco_json(
    detections: Sequence[Mapping], style: ClassStyle, *, file_name: str, size: tuple[int, int]
) -> dict:
    """
    Args:
        detections: detections in one image.
        style: the classes.
        file_name: file name of the image.
        size: width and height of the image.

    Returns:
        An annotation file in COCO's format: the image, its objects with their ``score``, and all classes.
    """
    width, height = size
    annotations = []
    for number, detection in enumerate(detections, start=1):
        box, mask = detection["bbox"], detection.get("segmentation")
        annotation = {
            "id": number,
            "image_id": 1,
            "category_id": detection["category_id"],
            "bbox": box,
            "area": float(mask_util.area(mask)) if mask else box[2] * box[3],
            "iscrowd": 0,
            "score": detection["score"],
        }
        annotations.append({**annotation, "segmentation": mask} if mask else annotation)
    return {
        "images": [{"id": 1, "file_name": file_name, "width": width, "height": height}],
        "annotations": annotations,
        "categories": [{"id": category_id, "name": name} for category_id, name in style.names.items()],
    }


def summary(found: Sequence[Mapping], shown: Sequence[Mapping], style: ClassStyle) -> str:
    """How many detections are shown on each side of the split, and how many are hidden."""
    with_masks = sum(_side(detection, style) == "A" for detection in shown)
    boxes_only, hidden = len(shown) - with_masks, len(found) - len(shown)
    return (
        f"Shown: {with_masks} of classes trained with masks, {boxes_only} of classes with boxes only. "
        f"Not shown: {hidden}."
    )


def _trained_with(detection: Mapping, style: ClassStyle) -> str:
    if detection["category_id"] in style.by_teacher:
        return "masks by a teacher"
    return "masks" if _side(detection, style) == "A" else "boxes only"


def _side(detection: Mapping, style: ClassStyle) -> str:
    return "A" if detection["category_id"] in style.with_masks else "B"


def _area(detection: Mapping) -> tuple[str | int, str]:
    mask = detection.get("segmentation")
    if mask is None:
        return "-", "-"
    area = int(mask_util.area(mask))
    return area, f"{area / (mask['size'][0] * mask['size'][1]):.1%}"
