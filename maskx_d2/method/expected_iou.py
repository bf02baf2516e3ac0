"""The quality of a mask, estimated from its own probabilities."""

import torch
from torch import Tensor


def expected_iou(probabilities: Tensor, *, threshold: float = 0.5) -> Tensor:
    """
    The IoU of masks with the truth that is to be expected if the probabilities hold: expected intersection
    by expected union. Not from the paper; it needs no head of its own, as that of Mask Scoring R-CNN.

    Args:
        probabilities: (N, H, W) in [0, 1], of each cell that it belongs to the object.
        threshold: cells above it are the mask.

    Returns:
        (N,) in [0, 1]; 0 for an empty mask.
    """
    in_mask = probabilities > threshold
    zero = torch.zeros_like(probabilities)
    intersection = torch.where(in_mask, probabilities, zero).sum((1, 2))
    union = torch.where(in_mask, 1.0, probabilities).sum((1, 2))
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)
