import torch

from maskx_d2.method import expected_iou


def naive(probabilities, threshold):
    intersection = union = 0.0
    for row in probabilities.double().tolist():
        for p in row:
            # Of a cell that is in the mask, and one that is not: chances to be in both, and in one of them.
            intersection += p if p > threshold else 0.0
            union += 1.0 if p > threshold else p
    return intersection / union if intersection else 0.0


def test_it_equals_a_loop_over_cells():
    probabilities = torch.rand(6, 7, 5, generator=torch.Generator().manual_seed(0))
    probabilities[1] = 0
    probabilities[2] = 0.4
    for threshold in (0.5, 0.3):
        expected = torch.tensor([naive(p, threshold) for p in probabilities])
        assert torch.allclose(expected_iou(probabilities, threshold=threshold), expected, atol=1e-6)


def test_certainty_is_one_and_nothing_is_zero():
    certain = torch.zeros(2, 4, 4)
    certain[0, 1:3] = 1
    assert expected_iou(certain).tolist() == [1, 0]
    assert expected_iou(torch.zeros(0, 4, 4)).shape == (0,)


def test_it_is_the_iou_that_draws_from_the_probabilities_have_in_the_mean():
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(28, 28, generator=generator) ** 0.2
    mask = probabilities > 0.5
    truths = torch.rand(2000, 28, 28, generator=generator) < probabilities
    ious = (truths & mask).sum((1, 2)) / (truths | mask).sum((1, 2))
    assert abs(expected_iou(probabilities[None]).item() - ious.mean().item()) < 0.002
