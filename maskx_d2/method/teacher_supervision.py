"""
The loss of RoIs whose mask is by a teacher: a model that gives a mask for a box, with a score of how good
it is. It is not in the paper.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class TeacherSupervision:
    """
    Cross-entropy with the masks of a teacher, weighted by their scores. An instance whose score is below
    the least one has a box only.
    """

    weight: float = 1.0
    min_score: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise ValueError(f"weight of the teacher is {self.weight}, expected more than 0")
        if not 0 <= self.min_score <= 1:
            raise ValueError(f"min_score of the teacher is {self.min_score}, expected 0 to 1")

    def is_used(self, scores: Tensor) -> Tensor:
        """
        Args:
            scores: (N,) scores of the teacher's masks; 0 for an instance without one.

        Returns:
            (N,) bool, whether the mask of each instance is learned from.
        """
        return (scores > 0) & (scores >= self.min_score)

    def loss(self, mask_logits: Tensor, mask_targets: Tensor, scores: Tensor) -> Tensor:
        """
        Args:
            mask_logits: (N, M, M).
            mask_targets: (N, M, M), bool, or float in [0, 1].
            scores: (N,) scores of these masks.

        Returns:
            A scalar: the weight times the mean over RoIs of score times cross-entropy. Without RoIs it is
            zero but still depends on the logits, see :func:`mask_loss`.
        """
        if mask_logits.dtype in (torch.float16, torch.bfloat16):
            mask_logits = mask_logits.float()
        if mask_logits.shape[0] == 0:
            return mask_logits.sum()
        dtype = mask_logits.dtype
        of_cells = F.binary_cross_entropy_with_logits(mask_logits, mask_targets.to(dtype), reduction="none")
        return self.weight * (scores.to(dtype) * of_cells.mean((1, 2))).mean()
