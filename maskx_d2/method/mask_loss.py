"""The loss of the mask head, over the RoIs that have a mask."""

import torch
import torch.nn.functional as F
from torch import Tensor


def mask_loss(mask_logits: Tensor, mask_targets: Tensor) -> Tensor:
    """
    Mean binary cross-entropy over all cells of all masks, as in Mask R-CNN.

    Without any mask the loss is zero but still depends on the logits, so that every parameter they depend
    on gets a gradient (of zero): under DDP, all ranks must take part in the reduction.

    Args:
        mask_logits: (N, M, M), one map for each RoI whose matched instance has a mask.
        mask_targets: (N, M, M), bool, or float in [0, 1].

    Returns:
        A float32 scalar (float64 for float64 logits).
    """
    if mask_logits.dtype in (torch.float16, torch.bfloat16):
        mask_logits = mask_logits.float()
    if mask_logits.shape[0] == 0:
        return mask_logits.sum()
    return F.binary_cross_entropy_with_logits(mask_logits, mask_targets.to(mask_logits.dtype))


@torch.no_grad()
def mask_statistics(mask_logits: Tensor, mask_targets: Tensor) -> dict[str, float]:
    """
    Compare the thresholded predictions with their (N, M, M) targets: ``accuracy`` over all cells,
    ``false_positive`` over the background cells, ``false_negative`` over the foreground cells.
    """
    foreground = mask_targets > 0.5
    wrong = (mask_logits > 0) != foreground
    num_cells = foreground.numel()
    num_foreground, num_wrong, num_missed = torch.stack(
        [foreground.sum(), wrong.sum(), (wrong & foreground).sum()]
    ).tolist()
    return {
        "accuracy": 1 - num_wrong / max(num_cells, 1),
        "false_positive": (num_wrong - num_missed) / max(num_cells - num_foreground, 1),
        "false_negative": num_missed / max(num_foreground, 1),
    }
