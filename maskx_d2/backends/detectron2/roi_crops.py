"""Image colours averaged over the cells of RoIs, and the cells that instance masks cover."""

from collections.abc import Sequence

import torch
from detectron2.layers import ROIAlign
from detectron2.structures import BitMasks, Boxes, PolygonMasks
from detectron2.structures.boxes import pairwise_intersection
from torch import Tensor

from maskx_d2.data.errors import InputError


class ToRGB:
    """Turns an image that Detectron2 has normalised for a model back into colours."""

    def __init__(self, *, pixel_mean: Sequence[float], pixel_std: Sequence[float], image_format: str):
        """
        Args:
            pixel_mean, pixel_std: as in MODEL.PIXEL_MEAN and MODEL.PIXEL_STD.
            image_format: as in INPUT.FORMAT, ``"RGB"`` or ``"BGR"``.
        """
        if image_format not in ("RGB", "BGR"):
            raise InputError(
                f"INPUT.FORMAT is {image_format!r}, expected 'RGB' or 'BGR' for colours of images"
            )
        self.pixel_mean, self.pixel_std = pixel_mean, pixel_std
        self.image_format = image_format

    def __call__(self, image: Tensor) -> Tensor:
        """(3, H, W) as the backbone takes it -> (3, H, W) RGB in [0, 1]."""
        mean, std = (
            image.new_tensor(values)[:, None, None] for values in (self.pixel_mean, self.pixel_std)
        )
        pixels = ((image * std + mean) / 255).clamp(0, 1)
        return pixels.flip(0) if self.image_format == "BGR" else pixels


def average_to_cells(image: Tensor, rois: Tensor, side: int) -> Tensor:
    """(C, H, W) image and (R, 4) boxes in it -> (R, C, side, side) means over the cells of each."""
    rois = torch.cat([torch.zeros_like(rois[:, :1]), rois], dim=1)
    return ROIAlign((side, side), spatial_scale=1.0, sampling_ratio=0, aligned=True)(image[None], rois)


def covered_cells(masks: BitMasks | PolygonMasks | None, rois: Tensor, side: int) -> Tensor:
    """
    The cells that any of an image's masks mostly covers.

    Args:
        masks: masks of the image; None for no masks.
        rois: (R, 4) boxes in the image.
        side: number of cells of a RoI in each direction.

    Returns:
        (R, side, side) bool.
    """
    if masks is None or len(masks) == 0 or len(rois) == 0:
        return torch.zeros(len(rois), side, side, dtype=torch.bool, device=rois.device)
    if isinstance(masks, BitMasks):
        covered = masks.tensor.any(0).to(rois)
        return average_to_cells(covered[None], rois, side)[:, 0] >= 0.5
    # The polygons of several masks together form one mask, their union.
    is_near = pairwise_intersection(Boxes(rois.cpu()), masks.get_bounding_boxes()) > 0
    unions = [
        [polygon for mask, near in zip(masks.polygons, of_roi, strict=True) if near for polygon in mask]
        for of_roi in is_near.tolist()
    ]
    return PolygonMasks(unions).crop_and_resize(rois, side).to(rois.device)
