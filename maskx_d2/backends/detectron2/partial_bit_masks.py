"""``PartialBitMasks``: bit masks of instances, some of which have none."""

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.layers import ROIAlign
from detectron2.structures import BitMasks, Boxes
from torch import Tensor

from maskx_d2.data.errors import InputError


class PartialBitMasks(BitMasks):
    """
    Detectron2's ``BitMasks``, but an instance without a mask takes no memory, and indexing, as for the RoIs
    of a training step, copies no masks: each instance has the index of its mask.
    """

    def __init__(self, masks: Tensor, index: Tensor | None = None):
        """
        Args:
            masks: (M, H, W) bool.
            index: (N,) int64, the mask of each instance, -1 for none; None for one mask each, in order.
        """
        self.masks = masks.to(torch.bool)
        self.index = torch.arange(len(masks), device=masks.device) if index is None else index
        self.image_size = masks.shape[1:]

    @property
    def tensor(self) -> Tensor:
        """(N, H, W) bool, newly created; zeros for an instance without a mask."""
        if len(self.masks) == 0:
            return self.masks.new_zeros(len(self.index), *self.image_size)
        return self.masks[self.index.clamp(min=0)] & self._has_mask[:, None, None]

    @property
    def _has_mask(self) -> Tensor:
        return self.index >= 0

    @property
    def device(self) -> torch.device:
        return self.masks.device

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_instances={len(self)})"

    def __getitem__(self, item: int | slice | Tensor | np.ndarray | Sequence) -> "PartialBitMasks":
        """See ``BitMasks``; the masks are shared."""
        index = self.index[item]
        return type(self)(self.masks, index[None] if index.ndim == 0 else index)

    def to(self, *args, **kwargs) -> "PartialBitMasks":
        masks = self.masks.to(*args, **kwargs)
        return type(self)(masks, self.index.to(masks.device))

    def nonempty(self) -> Tensor:
        """See ``BitMasks``."""
        if len(self.masks) == 0:
            return self._has_mask
        return self.masks.flatten(1).any(1)[self.index.clamp(min=0)] & self._has_mask

    def get_bounding_boxes(self) -> Boxes:
        """See ``BitMasks``."""
        boxes = BitMasks(self.masks).get_bounding_boxes().tensor
        boxes = torch.cat([boxes, boxes.new_zeros(1, 4)])  # index -1, for no mask
        return Boxes(boxes[self.index.to(boxes.device)])

    def crop_and_resize(self, boxes: Tensor, mask_size: int) -> Tensor:
        """See ``BitMasks``."""
        if len(boxes) != len(self):
            raise InputError(f"there are {len(boxes)} boxes, expected one for each of {len(self)} masks")
        if len(self.masks) == 0:
            return self.masks.new_zeros(len(self), mask_size, mask_size)
        # RoIAlign takes the RoIs of many images. The masks are its images.
        image = self.index.clamp(min=0)[:, None].to(boxes)
        rois = torch.cat([image, boxes], dim=1).to(self.device)
        align = ROIAlign((mask_size, mask_size), spatial_scale=1.0, sampling_ratio=0, aligned=True)
        cropped = align(self.masks[:, None].to(rois), rois)[:, 0]
        return (cropped >= 0.5) & self._has_mask[:, None, None]

    @staticmethod
    def cat(masks: Sequence["PartialBitMasks"]) -> "PartialBitMasks":
        """For ``Instances.cat``."""
        first = masks[0]
        if all(each.masks is first.masks for each in masks):  # indexed from the same masks
            return type(first)(first.masks, torch.cat([each.index for each in masks]))
        starts = np.cumsum([0, *(len(each.masks) for each in masks)])
        indices = [
            torch.where(each.index < 0, each.index, each.index + start)
            for each, start in zip(masks, starts[:-1].tolist(), strict=True)
        ]
        return type(first)(torch.cat([each.masks for each in masks]), torch.cat(indices))
