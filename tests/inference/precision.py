"""What holds for a detector in half precision."""

import numpy as np
import pycocotools.mask as mask_util
import torch
from PIL import Image

from maskx_d2.inference.detector import Detector, KnownObjects
from maskx_d2.method import MLPBranch


def assert_nearly_the_same_in_half_precision(detector: Detector, *, category_id: int) -> None:
    """Its masks of given boxes, its boxes and scores. The weights of the MLP branch are stored in it."""
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    image = Image.fromarray(pixels)
    objects = KnownObjects([[5.0, 6.0, 70.0, 80.0], [30.0, 20.0, 110.0, 85.0]], [category_id] * 2)

    def found():
        return detector.masks_in_boxes([image], [objects])[0], detector.coco_results([image], [1])[0]

    masks, detections = found()
    assert detector.use_precision("bf16") is detector
    branches = [m for m in detector._model.modules() if isinstance(m, MLPBranch)]
    assert branches and all(p.dtype == torch.bfloat16 for b in branches for p in b.parameters())
    half_masks, half_detections = found()
    for mask, half in zip(masks, half_masks, strict=True):
        assert abs(mask.score - half.score) < 0.05
        differ = mask_util.decode(mask.rle) != mask_util.decode(half.rle)
        assert differ.mean() < 0.03
    assert detections and half_detections
    assert half_detections != detections
    assert abs(half_detections[0]["score"] - detections[0]["score"]) < 0.05
