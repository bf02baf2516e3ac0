"""Reduces the detections to draw when a model with thousands of classes finds several on one region."""

from collections.abc import Mapping, Sequence

import numpy as np
import pycocotools.mask as mask_util

_MANY_CLASSES = 100
_TOP = 30
_MIN_IOU = 0.8


def readable_detections(
    detections: Sequence[Mapping],
    num_classes: int,
    *,
    top: int | None = None,
    merge_iou: float | None = None,
) -> list[Mapping]:
    """
    What to draw of the detections in an image: of a model of more than 100 classes, if nothing else is
    said, the 30 best, and of those on one region the best.

    Args:
        detections: of one image, in COCO's results format.
        num_classes: of the model.
        top: how many at most.
        merge_iou: of detections whose boxes overlap by more than this the best stands for all; 1 for none.
    """
    if num_classes > _MANY_CLASSES:
        top = _TOP if top is None else top
        merge_iou = _MIN_IOU if merge_iou is None else merge_iou
    shown = list(detections) if merge_iou is None else merge_regions(detections, min_iou=merge_iou)
    return shown if top is None else best_detections(shown, top)


def merge_regions(detections: Sequence[Mapping], *, min_iou: float = _MIN_IOU) -> list[dict]:
    """
    Keep the best of detections on one region, whatever their classes, and count the others.

    Args:
        detections: of one image, in COCO's results format.
        min_iou: boxes that overlap by more than this are one region.

    Returns:
        What is left, the best first, each with ``others``, how many it stands for beside itself.
    """
    ordered = sorted(detections, key=lambda detection: -detection["score"])
    if not ordered:
        return []
    boxes = np.array([detection["bbox"] for detection in ordered], dtype=np.float64)
    overlap = mask_util.iou(boxes, boxes, np.zeros(len(boxes), dtype=np.uint8))
    kept: dict[int, int] = {}
    for i in range(len(ordered)):
        best = next((k for k in kept if overlap[k, i] > min_iou), None)
        if best is None:
            kept[i] = 0
        else:
            kept[best] += 1
    return [{**ordered[i], "others": others} for i, others in kept.items()]


def best_detections(detections: Sequence[Mapping], count: int) -> list[Mapping]:
    """The ``count`` detections of the highest scores, the best first."""
    return sorted(detections, key=lambda detection: -detection["score"])[:count]
