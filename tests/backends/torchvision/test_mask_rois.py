import pytest
import torch

from maskx_d2.backends.torchvision.mask_rois import select_mask_rois

from . import tiny

LABELS, HAS_MASK = [1, 4, 2], [True, False, True]
MATCHED = [2, None, 1, 0, 1, None, 0]  # of each sampled proposal its instance; None for background


def sampled_proposals():
    """Of an image with three instances and of one without any, as torchvision samples them."""
    target, empty = tiny.target(LABELS, HAS_MASK), tiny.target([], [])
    proposals = [torch.arange(28.0).reshape(7, 4), torch.zeros(2, 4)]
    matched = [torch.tensor([m or 0 for m in MATCHED]), torch.zeros(2, dtype=torch.int64)]
    labels = [torch.tensor([0 if m is None else LABELS[m] for m in MATCHED]), torch.zeros(2).long()]
    return proposals, matched, labels, [target, empty]


@pytest.mark.parametrize("include_box_only", [False, True])
@pytest.mark.parametrize("train_rois", ["proposals", "ground_truth", "both"])
def test_rois_and_their_supervision_are_those_of_a_loop_over_proposals_and_instances(
    train_rois, include_box_only
):
    proposals, matched, labels, targets = sampled_proposals()
    expected = []
    if train_rois != "ground_truth":
        for box, instance in zip(proposals[0].tolist(), MATCHED, strict=True):
            if instance is not None and (HAS_MASK[instance] or include_box_only):
                expected.append((box, LABELS[instance] - 1, HAS_MASK[instance]))
    if train_rois != "proposals":
        for box, label, has_mask in zip(targets[0]["boxes"].tolist(), LABELS, HAS_MASK, strict=True):
            if has_mask or include_box_only:
                expected.append((box, label - 1, has_mask))
    first, second = select_mask_rois(
        proposals, matched, labels, targets, include_box_only=include_box_only, train_rois=train_rois
    )
    columns = first.boxes.tolist(), first.classes.tolist(), first.is_masked.tolist()
    assert list(zip(*columns, strict=True)) == expected and len(second.boxes) == 0


def test_rois_per_image_are_drawn_among_those_that_learn():
    drawn = set()
    for seed in range(8):
        torch.manual_seed(seed)
        first, _ = select_mask_rois(*sampled_proposals(), include_box_only=False, rois_per_image=2)
        assert len(first.boxes) == 2 and first.is_masked.all()
        drawn.add(str(first.boxes.tolist()))
    assert len(drawn) > 1
