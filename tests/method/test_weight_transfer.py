import math

import pytest
import torch

from maskx_d2.method import WeightTransfer

from . import naive


def layers_of(transfer):
    return [(m.weight, m.bias) for m in transfer if isinstance(m, torch.nn.Linear)]


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("activation", ["leaky_relu", "relu"])
@pytest.mark.parametrize("num_classes", [0, 1, 6])
def test_output_and_gradients_are_those_of_the_formula(num_layers, activation, num_classes):
    transfer = WeightTransfer(9, 4, 5, num_layers, activation).double()
    for _, bias in layers_of(transfer):
        torch.nn.init.normal_(bias)
    embeddings = torch.randn(num_classes, 9, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(num_classes, 4, dtype=torch.float64)
    inputs = [embeddings, *transfer.parameters()]

    out = transfer(embeddings)
    expected = naive.transfer(embeddings, layers_of(transfer), activation)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    gradients = torch.autograd.grad((out * weight).sum(), inputs)
    expected_gradients = torch.autograd.grad((expected * weight).sum(), inputs)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-12, atol=1e-12)


def test_layer_widths_are_those_of_the_paper():
    shapes = [tuple(weight.shape) for weight, _ in layers_of(WeightTransfer(5120))]
    assert shapes == [(256, 5120), (256, 256)]


@pytest.mark.parametrize("out_dim", [64, 256])
def test_weights_are_drawn_by_fan_out_and_biases_are_zero(out_dim):
    (weight, bias) = layers_of(WeightTransfer(5120, out_dim, num_layers=1))[0]
    # Caffe2's MSRAFill: a normal distribution with variance 2 / fan-out.
    assert weight.std().item() == pytest.approx(math.sqrt(2 / out_dim), rel=0.02)
    assert bias.abs().sum() == 0


def test_errors_name_what_was_found():
    with pytest.raises(ValueError, match="1, 2 or 3, found 4"):
        WeightTransfer(9, num_layers=4)
    with pytest.raises(ValueError, match=r"'leaky_relu', 'relu'.*found 'gelu'"):
        WeightTransfer(9, activation="gelu")
