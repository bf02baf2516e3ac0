"""Fewer detections to look at, where a model knows thousands of classes and finds several on one region."""

from collections.abc import Mapping, Sequence

import numpy as np
import pycocotools.mask as mask_util


def merge_regions(detections: Sequence[Mapping], *, min_iou: float = 0.8) -> list[dict]:
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
