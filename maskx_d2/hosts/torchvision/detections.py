"""Torchvision's detections in COCO's results format."""

from collections.abc import Sequence

import numpy as np
import pycocotools.mask as mask_util
from torch import Tensor

_MASK_THRESHOLD = 0.5


def coco_results(detections: dict[str, Tensor], image_id: int, category_ids: Sequence[int]) -> list[dict]:
    """
    Args:
        detections: what a torchvision detection model returns for an image.
        image_id: of that image.
        category_ids: category id of each class, the background left out.

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
        masks = (detections["masks"][:, 0] > _MASK_THRESHOLD).cpu().numpy().astype(np.uint8)
        for result, mask in zip(results, masks, strict=True):
            rle = mask_util.encode(np.asfortranarray(mask))
            result["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
    return results
