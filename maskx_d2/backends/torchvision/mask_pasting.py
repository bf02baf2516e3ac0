"""Masks in their boxes -> masks of the image's size, as tensors or RLE."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import expand_boxes, expand_masks, paste_mask_in_image
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from maskx_d2.data.rle import encode_part

MASK_THRESHOLD = 0.5


def masks_as_rle(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[dict]:
    """
    The masks that torchvision's ``paste_masks_in_image`` makes, but one at a time and only in their boxes.
    There, 100 masks of an image of 12 megapixels take 5 GB.

    Args:
        masks: (N, M, M) probabilities.
        boxes: (N, 4), x0, y0, x1, y1 in pixels of the image.
        size: height and width of the image.

    Returns:
        Compressed RLE of the pixels above :data:`MASK_THRESHOLD`.
    """
    height, width = size
    return [
        encode_part((part > MASK_THRESHOLD).cpu().numpy(), left=left, top=top, height=height, width=width)
        for part, left, top in _pasted_parts(masks, boxes, size)
    ]


class PastingTransform(GeneralizedRCNNTransform):
    """
    Torchvision's transform, but it waits for a GPU once for all masks of an image, instead of about thirty
    times for each mask.
    """

    @classmethod
    def like(cls, transform: GeneralizedRCNNTransform) -> "PastingTransform":
        """With the options of another one."""
        new = cls.__new__(cls)
        new.__dict__.update(transform.__dict__)
        return new

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """See torchvision's."""
        if self.training or torch.jit.is_tracing():
            return super().postprocess(result, image_shapes, original_image_sizes)
        in_boxes = [found.pop("masks", None) for found in result]
        result = super().postprocess(result, image_shapes, original_image_sizes)
        for found, masks, size in zip(result, in_boxes, original_image_sizes, strict=True):
            if masks is None:
                continue
            found["masks"] = masks.new_zeros(len(masks), 1, *size)
            parts = _pasted_parts(masks[:, 0], found["boxes"], size)
            for number, (part, left, top) in enumerate(parts):
                height, width = part.shape
                found["masks"][number, 0, top : top + height, left : left + width] = part
        return result


def _pasted_parts(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Iterator[tuple[Tensor, int, int]]:
    """(N, M, M) and (N, 4) -> for each mask the part of the image that is pasted, its left and its top."""
    height, width = size
    padded, scale = expand_masks(masks.unsqueeze(1), padding=1)
    whole_boxes = expand_boxes(boxes, scale).to(torch.int64).tolist()
    for (mask,), (x0, y0, x1, y1) in zip(padded, whole_boxes, strict=True):
        left, top = min(max(x0, 0), width), min(max(y0, 0), height)
        part_size = max(min(y1 + 1, height) - top, 0), max(min(x1 + 1, width) - left, 0)
        yield paste_mask_in_image(mask, [x0 - left, y0 - top, x1 - left, y1 - top], *part_size), left, top
