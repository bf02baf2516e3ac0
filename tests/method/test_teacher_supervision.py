import math

import pytest
import torch

from maskx_d2.method import TeacherSupervision


def test_the_loss_is_cross_entropy_weighted_by_the_scores():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 4, generator=generator, dtype=torch.float64)
    targets = torch.rand(3, 4, 4, generator=generator) > 0.5
    scores = torch.tensor([0.9, 0.5, 0.1])
    expected = 0.0
    for score, of_logits, of_targets in zip(scores.tolist(), logits, targets, strict=True):
        cells = zip(of_logits.flatten().tolist(), of_targets.flatten().tolist(), strict=True)
        entropies = [math.log1p(math.exp(-x if is_on else x)) for x, is_on in cells]
        expected += 2.0 * score * sum(entropies) / 16 / 3
    assert TeacherSupervision(weight=2.0).loss(logits, targets, scores).item() == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_rois_it_is_zero_and_gives_the_logits_a_gradient(dtype):
    logits = torch.zeros(0, 4, 4, dtype=dtype, requires_grad=True)
    loss = TeacherSupervision().loss(logits * 1, torch.zeros(0, 4, 4), torch.zeros(0))
    assert loss == 0 and loss.dtype == torch.float32
    loss.backward()
    assert logits.grad is not None


def test_half_precision_is_computed_in_single():
    logits = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    targets, scores = torch.ones(2, 4, 4), torch.tensor([0.5, 1.0])
    teacher = TeacherSupervision()
    torch.testing.assert_close(
        teacher.loss(logits, targets, scores), teacher.loss(logits.float(), targets, scores)
    )


def test_masks_with_a_score_of_zero_or_below_the_least_are_not_used():
    scores = torch.tensor([0.0, 0.3, 0.5, 1.0])
    assert TeacherSupervision().is_used(scores).tolist() == [False, True, True, True]
    assert TeacherSupervision(min_score=0.5).is_used(scores).tolist() == [False, False, True, True]


@pytest.mark.parametrize("options", [{"weight": 0.0}, {"weight": math.inf}, {"min_score": 1.5}])
def test_options_out_of_range_are_refused(options):
    (name,) = options
    with pytest.raises(ValueError, match=rf"{name} of the teacher is .*, expected"):
        TeacherSupervision(**options)
