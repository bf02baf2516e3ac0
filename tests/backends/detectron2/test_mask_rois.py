import pytest
import torch
from detectron2.structures import Boxes, Instances

from maskx_d2.backends.detectron2.mask_rois import remember_ground_truth, select_mask_rois

from . import tiny

NUM_CLASSES = tiny.NUM_CLASSES
CLASSES, HAS_MASK = [0, 3, 1], [True, False, True]
MATCHED = [2, None, 1, 0, 1, None, 0]  # of each sampled proposal its instance; None for background


def sampled_proposals():
    """Of an image with three instances and of one without any, as Detectron2 samples them."""
    targets = tiny.instances(CLASSES, HAS_MASK)
    rois = Instances((tiny.SIDE, tiny.SIDE))
    rois.proposal_boxes = Boxes(torch.arange(28.0).reshape(7, 4))
    index = torch.tensor([m or 0 for m in MATCHED])
    is_background = torch.tensor([m is None for m in MATCHED])
    rois.gt_classes = targets.gt_classes[index].masked_fill(is_background, NUM_CLASSES)
    rois.gt_has_mask = targets.gt_has_mask[index]
    rois.gt_boxes = targets.gt_boxes[index]
    empty = Instances((tiny.SIDE, tiny.SIDE))
    empty.proposal_boxes = Boxes(torch.zeros(2, 4))
    empty.gt_classes = torch.full((2,), NUM_CLASSES)
    empty.gt_boxes = Boxes(torch.zeros(2, 4))
    sampled = [rois, empty]
    remember_ground_truth(sampled, [targets, tiny.instances([], [])])
    return sampled, targets


@pytest.mark.parametrize("include_box_only", [False, True])
@pytest.mark.parametrize("train_rois", ["proposals", "ground_truth", "both"])
def test_rois_and_their_supervision_are_those_of_a_loop_over_proposals_and_instances(
    train_rois, include_box_only
):
    sampled, targets = sampled_proposals()
    expected = []
    if train_rois != "ground_truth":
        for box, matched in zip(sampled[0].proposal_boxes.tensor.tolist(), MATCHED, strict=True):
            if matched is not None and (HAS_MASK[matched] or include_box_only):
                expected.append((box, CLASSES[matched], HAS_MASK[matched]))
    if train_rois != "proposals":
        for box, label, has_mask in zip(targets.gt_boxes.tensor.tolist(), CLASSES, HAS_MASK, strict=True):
            if has_mask or include_box_only:
                expected.append((box, label, has_mask))
    options = {"num_classes": NUM_CLASSES, "include_box_only": include_box_only, "train_rois": train_rois}
    before = sampled[0].gt_classes.clone()
    for _ in range(2):  # nothing is kept from one call to the next
        first, second = select_mask_rois(sampled, **options)
        columns = (
            first.proposal_boxes.tensor.tolist(),
            first.gt_classes.tolist(),
            first.gt_has_mask.tolist(),
        )
        assert list(zip(*columns, strict=True)) == expected and len(second) == 0
    assert torch.equal(sampled[0].gt_classes, before)


def test_rois_per_image_are_drawn_among_those_that_learn():
    drawn = set()
    for seed in range(8):
        torch.manual_seed(seed)
        first, _ = select_mask_rois(
            sampled_proposals()[0], num_classes=NUM_CLASSES, include_box_only=False, rois_per_image=2
        )
        assert len(first) == 2 and first.gt_has_mask.all() and (first.gt_classes < NUM_CLASSES).all()
        drawn.add(str(first.proposal_boxes.tensor.tolist()))
    assert len(drawn) > 1
