"""
Losses for RoIs whose instance has a box but no mask. They are not in the paper.

A box says a lot about the mask: it must fill the box, stay inside it, and not cover other known objects.
With these losses, the weight transfer function also trains on classes without masks.

N RoIs, M mask side. Boxes are (x0, y0, x1, y1).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_COLOUR_SIMILARITY = 0.3  # of two cells that count as one surface; BoxInst's value
_NEIGHBOUR_DISTANCE = 2  # cells; BoxInst's dilation
_DICE_EPSILON = 1e-5


class BoxSupervision(nn.Module):
    """
    The weighted sum of :func:`projection_loss`, :func:`known_background_loss` and :func:`pairwise_loss`,
    which starts late in training: masks that are still meaningless gain nothing from filling their boxes.

    ``steps`` is the number of optimiser steps that the run has done. Both backends set it before each step
    (:meth:`set_steps`), so that it is that of the run, also where several batches make one step or the
    weights are those of an earlier run. In a training loop that does not, it counts the calls.
    """

    def __init__(
        self,
        *,
        projection: float = 0.0,
        known_background: float = 0.0,
        pairwise: float = 0.0,
        start: int = 0,
        warmup: int = 0,
    ):
        """
        Args:
            projection, known_background, pairwise: weights of the three losses; 0 for none.
            start: number of steps in which the losses are zero.
            warmup: number of steps after these in which they rise from zero to their full weights.
        """
        super().__init__()
        weights = {"projection": projection, "known_background": known_background, "pairwise": pairwise}
        for name, value in {**weights, "start": start, "warmup": warmup}.items():
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} of the box supervision is {value}, expected 0 or more")
        self.weights = {name: weight for name, weight in weights.items() if weight > 0}
        self.start = start
        self.warmup = warmup
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.steps: Tensor

    def set_steps(self, steps: int) -> None:
        """Set the number of optimiser steps that the run has done."""
        self.steps.fill_(steps)

    @property
    def needs_colours(self) -> bool:
        """Whether :meth:`forward` reads ``colours``."""
        return "pairwise" in self.weights

    def check_rois(self, train_rois: str) -> None:
        """Raise ValueError if the RoIs are the boxes themselves and a loss is meaningless for them."""
        idle = [name for name in ("projection", "pairwise") if name in self.weights]
        if train_rois == "ground_truth" and idle:
            raise ValueError(
                "train_rois is 'ground_truth', expected 'proposals' or 'both' with box supervision by "
                f"{idle[0]}: if a RoI is the box itself, that loss is meaningless"
            )

    def forward(
        self,
        mask_logits: Tensor,
        rois: Tensor,
        boxes: Tensor,
        other_masks: Tensor,
        colours: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """
        The losses of one training batch. Call it exactly once for each, even without RoIs.

        Args:
            mask_logits: (N, M, M), one map for each RoI whose matched instance has a box only.
            rois: (N, 4) regions that the maps belong to.
            boxes: (N, 4) ground-truth boxes of the matched instances.
            other_masks: (N, M, M) bool, the cells that masks of other instances of the image cover.
            colours: (N, 3, M, M) RGB in [0, 1], the image averaged over each cell; for the pairwise loss.

        Returns:
            ``{"projection"|"known_background"|"pairwise": float32 scalar}``, the weighted losses that have
            a weight. Without RoIs they are zero but still depend on the logits.
        """
        if mask_logits.dtype in (torch.float16, torch.bfloat16):
            mask_logits = mask_logits.float()
        ramp = self._ramp().to(mask_logits.dtype)
        self.steps += 1
        if mask_logits.shape[0] == 0:
            return {name: mask_logits.sum() for name in self.weights}
        rows, columns = box_coverage(rois, boxes, mask_logits.shape[-1])
        losses = {}
        for name, weight in self.weights.items():
            if name == "projection":
                loss = projection_loss(mask_logits, rows, columns)
            elif name == "known_background":
                loss = known_background_loss(mask_logits, _outside(rows, columns) | other_masks)
            elif colours is None:
                raise ValueError("colours are None, expected (N, 3, M, M) for the pairwise loss")
            else:
                similarity = colour_similarity(rgb_to_lab(colours))
                loss = pairwise_loss(mask_logits, ~_outside(rows, columns), similarity)
            losses[name] = loss * weight * ramp
        return losses

    def _ramp(self) -> Tensor:
        """Scalar in [0, 1]. A tensor, because reading the count would wait for the GPU."""
        since_start = self.steps - self.start
        return ((since_start + 1) / (self.warmup + 1)).clamp(0, 1)

    def extra_repr(self) -> str:
        weights = ", ".join(f"{name}={weight}" for name, weight in self.weights.items())
        return f"{weights}, start={self.start}, warmup={self.warmup}"


def box_coverage(rois: Tensor, boxes: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """
    The share of each row and of each column of a RoI's cells that its ground-truth box covers.

    Args:
        rois, boxes: (N, 4).
        side: M.

    Returns:
        (N, M) shares of the rows and (N, M) shares of the columns, in [0, 1].
    """
    cells = torch.arange(side + 1, device=rois.device, dtype=rois.dtype)

    def shares(low: int, high: int) -> Tensor:
        size = (rois[:, high] - rois[:, low]).clamp(min=torch.finfo(rois.dtype).tiny)
        # In cells from the RoI's edge.
        first, last = (
            ((boxes[:, i] - rois[:, low]) / size * side).clamp(0, side).unsqueeze(1) for i in (low, high)
        )
        return (torch.minimum(last, cells[1:]) - torch.maximum(first, cells[:-1])).clamp(min=0)

    return shares(1, 3), shares(0, 2)


def projection_loss(mask_logits: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """
    The projections of a mask onto both axes must equal those of its box: Dice losses between the maxima of
    the mask over each row and column and the box's coverage of them (Tian et al., "BoxInst", CVPR 2021,
    section 3.1).

    Args:
        mask_logits: (N, M, M), N > 0.
        rows, columns: (N, M), see :func:`box_coverage`.
    """
    mask = mask_logits.sigmoid()
    return (_dice_loss(mask.amax(2), rows) + _dice_loss(mask.amax(1), columns)).mean()


def known_background_loss(mask_logits: Tensor, is_background: Tensor) -> Tensor:
    """
    Mean cross-entropy towards 0 over cells that cannot belong to the instance.

    Args:
        mask_logits: (N, M, M).
        is_background: (N, M, M) bool.
    """
    return (F.softplus(mask_logits) * is_background).sum() / is_background.sum().clamp(min=1)


def pairwise_loss(mask_logits: Tensor, in_box: Tensor, similarity: Tensor) -> Tensor:
    """
    Neighbouring cells of similar colour have the same label (BoxInst, section 3.2): mean of ``-log(m_i m_j
    + (1 - m_i)(1 - m_j))`` over the pairs of a cell in the box and one of its eight neighbours, two cells
    away, that are more similar than :data:`MIN_COLOUR_SIMILARITY`. The RoI must extend beyond the box: if
    all cells were in the box, a mask of all of them would be optimal.

    Args:
        mask_logits: (N, M, M).
        in_box: (N, M, M) bool.
        similarity: (N, 8, M, M), see :func:`colour_similarity`.
    """
    log_foreground, log_background = F.logsigmoid(mask_logits), F.logsigmoid(-mask_logits)
    log_same = torch.logaddexp(
        log_foreground.unsqueeze(1) + _neighbours(log_foreground),
        log_background.unsqueeze(1) + _neighbours(log_background),
    )
    is_pair = (similarity >= MIN_COLOUR_SIMILARITY) & in_box.unsqueeze(1)
    return -(log_same * is_pair).sum() / is_pair.sum().clamp(min=1)


def colour_similarity(lab: Tensor) -> Tensor:
    """
    ``exp(-|difference| / 2)`` of each cell and its eight neighbours, two cells away (BoxInst, equation 5).

    Args:
        lab: (N, 3, M, M) colours in CIELAB.

    Returns:
        (N, 8, M, M) in [0, 1]; 0 where the neighbour is outside the map.
    """
    difference = torch.stack([_neighbours(channel) for channel in lab.unbind(1)], 1) - lab.unsqueeze(2)
    is_inside = _neighbours(torch.ones_like(lab[:, 0]))
    return torch.exp(-difference.norm(dim=1) / 2) * is_inside


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """
    Convert (N, 3, ...) sRGB in [0, 1] to CIELAB with white point D65 and L in [0, 100], as in
    IEC 61966-2-1 and CIE 15.
    """
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055).clamp(min=0) ** 2.4, rgb / 12.92)
    to_xyz = rgb.new_tensor(
        [
            [0.412453, 0.357580, 0.180423],
            [0.212671, 0.715160, 0.072169],
            [0.019334, 0.119193, 0.950227],
        ]
    )
    # Relative to white, which is (1, 1, 1) in linear RGB.
    relative = torch.einsum("ij,nj...->ni...", to_xyz / to_xyz.sum(1, keepdim=True), linear)
    root = torch.where(
        relative > (6 / 29) ** 3,
        relative.clamp(min=(6 / 29) ** 3) ** (1 / 3),
        relative / (3 * (6 / 29) ** 2) + 4 / 29,
    )
    x, y, z = root.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def _outside(rows: Tensor, columns: Tensor) -> Tensor:
    """
    (N, M, M) bool, the cells of which the box covers less than half. Any mask within the box is 0 there,
    because mask targets are rounded.
    """
    return rows.unsqueeze(2) * columns.unsqueeze(1) < 0.5


def _dice_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """(N, M), (N, M) -> (N,)."""
    overlap = 2 * (predicted * target).sum(1)
    return 1 - overlap / (predicted.square().sum(1) + target.square().sum(1) + _DICE_EPSILON)


def _neighbours(cells: Tensor) -> Tensor:
    """(N, M, M) -> (N, 8, M, M): the values of the eight neighbours of each cell, zero outside the map."""
    distance = _NEIGHBOUR_DISTANCE
    shifted = F.unfold(cells.unsqueeze(1), kernel_size=3, dilation=distance, padding=distance)
    around = [i for i in range(9) if i != 4]
    return shifted.unflatten(2, cells.shape[1:])[:, around]
