"""Torchvision's detections in COCO's results format."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from maskx_d2.data.rle import encode

MASK_THRESHOLD = 0.5


def coco_results(detections: dict[str, Tensor], image_id: int, category_ids: Sequence[int]) -> list[dict]:
    """
    Args:
        detections: what a torchvision detection model returns for an image.
        image_id: id of that image.
        category_ids: category id of each class, without the background.

    Returns:
        For each detection ``image_id``, ``category_id``, ``bbox`` (XYWH), ``score`` and, if there are
        masks, ``segmentation`` (compressed RLE).
    """
    boxes = detections["boxes"].cpu().clone()
    boxes[:, 2:] -= boxes[:, :2]
    columns = boxes.tolist(), detections["labels"].tolist(), detections["scores"].tolist()
    results = [
        {"image_id": image_id, "category_id": category_ids[label - 1], "bbox": box, "score": score}
        for box, label, score in zip(*columns, strict=True)
    ]
    if "masks" in detections:
        for result, mask in zip(results, binary_masks(detections), strict=True):
            result["segmentation"] = encode(mask)
    return results


def binary_masks(detections: dict[str, Tensor]) -> np.ndarray:
    """The ``masks`` of an image as (N, H, W) bool."""
    return (detections["masks"][:, 0] > MASK_THRESHOLD).cpu().numpy()
