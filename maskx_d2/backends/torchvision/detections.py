"""Torchvision's detections in COCO's results format."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN

from maskx_d2.backends.torchvision.mask_pasting import masks_as_rle


@torch.inference_mode()
def detect(model: FasterRCNN, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
    """
    Like a call of the model in eval mode, but masks are left in their boxes: (N, 1, M, M). Pasted into
    their image, as the model itself returns them, each takes four bytes a pixel of it.

    Args:
        model: the model, in eval mode.
        images: (3, H, W) each.
    """
    in_boxes: list[Tensor] = []

    def keep_masks(module, inputs, output) -> None:
        detections, _ = output
        in_boxes.extend(found.pop("masks") for found in detections if "masks" in found)

    with model.roi_heads.register_forward_hook(keep_masks):
        detections = model(list(images))
    if in_boxes:
        for found, masks in zip(detections, in_boxes, strict=True):
            found["masks"] = masks
    return detections


def coco_results(
    detections: dict[str, Tensor], image_id: int, category_ids: Sequence[int], *, size: tuple[int, int]
) -> list[dict]:
    """
    Args:
        detections: what :func:`detect` returns for an image.
        image_id: id of that image.
        category_ids: category id of each class, without the background.
        size: height and width of that image.

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
        rles = masks_as_rle(detections["masks"][:, 0], detections["boxes"], size)
        for result, rle in zip(results, rles, strict=True):
            result["segmentation"] = rle
    return results
