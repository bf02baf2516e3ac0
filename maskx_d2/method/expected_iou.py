"""The quality of a mask, estimated from its own probabilities."""

import torch
from torch import Tensor


def expected_iou(probabilities: Tensor, *, threshold: float = 0.5) -> Tensor:
    """
    The expected IoU of masks with the ground truth, if the probabilities are right: expected intersection
    over expected union. Not from the paper. Unlike Mask Scoring R-CNN, it needs no head of its own.

    Args:
        probabilities: (N, H, W) in [0, 1], the probability of each cell to belong to the object.
        threshold: cells above it form the mask.

    Returns:
        (N,) in [0, 1]; 0 for an empty mask.
    """
    in_mask = probabilities > threshold
    zero = torch.zeros_like(probabilities)
    intersection = torch.where(in_mask, probabilities, zero).sum((1, 2))
    union = torch.where(in_mask, 1.0, probabilities).sum((1, 2))
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)
