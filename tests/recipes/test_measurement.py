"""Measured IoU and AP of heads that hand back true masks, and of one that predicts everything."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from torch import nn

from maskx_d2.recipes.cross_validation import measure
from maskx_d2.recipes.measurement import masks_in_true_boxes, see_measured
from tests.recipes.tiny import AGNOSTIC


class Filled(nn.Module):
    """A mask head whose masks fill their boxes."""

    roi_side = 14

    def forward(self, features, classes):
        return torch.full((len(features), 28, 28), 9.0)


@pytest.fixture(scope="module")
def measured(detector, annotated):
    return see_measured(detector, annotated.images[:12], sides=[14])


def test_the_iou_of_filled_boxes_is_that_of_pycocotools(detector, measured):
    objects, masks = masks_in_true_boxes(detector, Filled(), measured)
    expected = []
    for seen in measured:
        for index in seen.with_mask:
            x0, y0, x1, y1 = seen.image.boxes[index].tolist()
            box = mask_util.frPyObjects(
                [[x0, y0, x1, y0, x1, y1, x0, y1]], seen.image.height, seen.image.width
            )
            expected.append(mask_util.iou(box, [seen.image.masks[index]], [0])[0, 0])
    assert len(expected) == len(masks) > 10
    np.testing.assert_allclose(objects.ious, expected, atol=0.08)
    assert (objects.scores > 0.99).all()


def test_ap_of_a_class_without_objects_is_none_and_others_are_numbers(detector, annotated, measured):
    images = annotated.some(annotated.images[:12])
    outcome = measure(detector, detector.mask_head(AGNOSTIC).eval(), measured, images, hidden=[0])
    with_masks = {int(c) for s in measured for c in s.image.classes[s.with_mask]}
    for index, value in enumerate(outcome.average_precision):
        assert (value is not None) == (index in with_masks)
    hidden = [mask is not None for mask in outcome.masks]
    assert hidden == [c == 0 for c in outcome.classes]
