import pytest
import torch

from maskx_d2.method import mask_loss, mask_statistics

from . import naive


@pytest.mark.parametrize("n", [1, 5])
def test_loss_and_gradient_are_those_of_the_formula(n):
    logits = (3 * torch.randn(n, 6, 6, dtype=torch.float64)).requires_grad_()
    targets = torch.rand(n, 6, 6) > 0.4
    out, expected = mask_loss(logits, targets), naive.loss(logits, targets.double())
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(out, logits), torch.autograd.grad(expected, logits), rtol=1e-10, atol=1e-15
    )


def test_without_masks_the_loss_is_zero_and_depends_on_the_logits():
    weight = torch.ones(3, requires_grad=True)
    loss = mask_loss(weight[:0].reshape(0, 1, 1).expand(0, 6, 6), torch.zeros(0, 6, 6))
    assert loss.item() == 0
    loss.backward()
    assert torch.equal(weight.grad, torch.zeros(3))


def test_half_precision_logits_are_compared_in_float32():
    logits = torch.randn(2, 6, 6).bfloat16()
    targets = torch.rand(2, 6, 6) > 0.5
    loss = mask_loss(logits, targets)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(naive.loss(logits.double(), targets.double()).item(), rel=1e-6)


def test_statistics_count_cells():
    logits = torch.tensor([[[1.0, 1.0], [-1.0, -1.0]]])
    targets = torch.tensor([[[True, False], [True, False]]])
    assert mask_statistics(logits, targets) == {
        "accuracy": 0.5,
        "false_positive": 0.5,
        "false_negative": 0.5,
    }
    all_right = mask_statistics(logits, logits > 0)
    assert all_right == {"accuracy": 1, "false_positive": 0, "false_negative": 0}
