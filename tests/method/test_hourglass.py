"""Hourglass trunks against the definition in section 4 and the code of Birodkar et al., ICCV 2021."""

import functools

import pytest
import torch
from torch import nn

from maskx_d2.method import HOURGLASSES, Hourglass

GN = functools.partial(nn.GroupNorm, 8)
N = 16

# Channels and residual blocks of each stage, typed from the paper's code.
STAGES = {
    "hourglass_20": ([2, 2, 3], [1, 2, 2]),
    "hourglass_52": ([2, 2, 3, 3, 3, 4], [2, 2, 2, 2, 2, 4]),
    "hourglass_100": ([2, 2, 3, 3, 3, 4], [4, 4, 4, 4, 4, 8]),
}


def conv(i, o, k):
    """Weights of a convolution without bias, and two of the normalisation for each channel."""
    return i * o * k * k + 2 * o


def block(i, o, strided=False):
    shortcut = conv(i, o, 1) if i != o or strided else 0
    return conv(i, o, 3) + conv(o, o, 3) + shortcut


def number_of_parameters(name, in_channels):
    multiples, counts = STAGES[name]
    c = [N * m for m in multiples]
    total = conv(in_channels, N, 3) + block(N, c[0]) + conv(c[0], c[0], 3)
    for k in range(len(c) - 1):
        here, below, count = c[k], c[k + 1], counts[k]
        total += count * block(here, here)
        total += block(here, below, strided=True) + (count - 1) * block(below, below)
        total += (count - 1) * block(below, below) + block(below, here)
    return total + counts[-1] * block(c[-1], c[-1])


def build(name, in_channels=24):
    torch.manual_seed(0)
    return Hourglass(name, in_channels, channels=N, norm=GN)


@pytest.mark.parametrize("name", HOURGLASSES)
def test_shapes_and_numbers_of_parameters(name):
    trunk = build(name)
    assert trunk(torch.randn(2, 24, 32, 32)).shape == (2, 2 * N, 32, 32)
    assert trunk(torch.randn(0, 24, 32, 32)).shape == (0, 2 * N, 32, 32)
    assert trunk.out_channels == 2 * N
    assert sum(p.numel() for p in trunk.parameters()) == number_of_parameters(name, 24)


@pytest.mark.parametrize("name", HOURGLASSES)
def test_the_longest_way_has_as_many_layers_as_the_name_says(name):
    """3 x 3 convolutions on the way through all stages."""

    def longest(module):
        if isinstance(module, nn.Conv2d):
            return int(module.kernel_size == (3, 3))
        return sum(longest(child) for n, child in module.named_children() if n != "beside")

    assert longest(build(name)) == int(name.removeprefix("hourglass_"))


@pytest.mark.parametrize("name", HOURGLASSES)
def test_the_receptive_field_is_the_whole_roi(name):
    """Without normalisation, which looks at the whole map anyhow."""
    trunk = Hourglass(name, 24, channels=4, norm=lambda _: nn.Identity()).double()
    x = torch.randn(1, 24, 32, 32, dtype=torch.float64, requires_grad=True)
    trunk(x)[0, :, 16, 16].sum().backward()
    assert (x.grad.abs().sum((0, 1)) > 0).all()


def test_every_parameter_gets_a_gradient():
    trunk = build("hourglass_20")
    trunk(torch.randn(2, 24, 32, 32)).square().sum().backward()
    for name, parameter in trunk.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("name", "stride"), [("hourglass_20", 4), ("hourglass_52", 32), ("hourglass_100", 32)]
)
def test_sides_that_cannot_be_halved_are_refused(name, stride):
    trunk = build(name)
    trunk.check_side(32)
    with pytest.raises(ValueError, match=f"14 x 14 cells, expected a multiple of {stride}"):
        trunk.check_side(14)


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"one of .*hourglass_52.*, found 'hourglass_10'"):
        build("hourglass_10")
