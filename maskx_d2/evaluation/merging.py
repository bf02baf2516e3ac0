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
    Select the detections in an image to draw. By default, for a model of more than 100 classes, these are
    the 30 best, and only the best of those in one region.

    Args:
        detections: detections in one image, in COCO's results format.
        num_classes: number of classes of the model.
        top: maximum number of detections.
        merge_iou: of detections whose boxes overlap by more than this, the best stands for all; 1 for no
            merging.
    """
    if num_classes > _MANY_CLASSES:
        top = _TOP if top is None else top
        merge_iou = _MIN_IOU if merge_iou is None else merge_iou
    shown = list(detections) if merge_iou is None else merge_regions(detections, min_iou=merge_iou)
    return shown if top is None else best_detections(shown, top)


def merge_regions(detections: Sequence[Mapping], *, min_iou: float = _MIN_IOU) -> list[dict]:
    """
    Keep the best of the detections in one region, whatever their classes, and count the others.

    Args:
        detections: detections in one image, in COCO's results format.
        min_iou: boxes that overlap by more than this are one region.

    Returns:
        The remaining detections, best first, each with ``others``, the number of detections merged into it.
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
    """The ``count`` detections with the highest scores, best first."""
    return sorted(detections, key=lambda detection: -detection["score"])[:count]
