"""
Deep trunks of the mask head: hourglass networks, which see the whole RoI (Birodkar et al., "The surprising
impact of mask-head architecture on novel class segmentation", ICCV 2021). They are not in the
Mask^X R-CNN paper.
"""

import itertools
from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

# Channels, in units of n, and residual blocks of each stage, as in that paper's code.
_STAGES = {
    "hourglass_20": ((2, 2, 3), (1, 2, 2)),
    "hourglass_52": ((2, 2, 3, 3, 3, 4), (2, 2, 2, 2, 2, 4)),
    "hourglass_100": ((2, 2, 3, 3, 3, 4), (4, 4, 4, 4, 4, 8)),
}
HOURGLASSES = tuple(_STAGES)

Norm = Callable[[int], nn.Module]
"""Returns a normalisation layer for the given number of channels."""


class Hourglass(nn.Module):
    """
    A single-stage hourglass without initial downsampling. It halves the side of its input once for each
    stage except the first, and on the way back up adds the features of equal side from the way down.
    """

    def __init__(self, name: str, in_channels: int, *, channels: int = 64, norm: Norm):
        """
        Args:
            name: ``"hourglass_20"``, ``"hourglass_52"`` or ``"hourglass_100"``, after the number of layers
                on the longest path.
            in_channels: channels of the RoI feature.
            channels: n; the output has 2n channels.
            norm: normalisation after each convolution.
        """
        super().__init__()
        if name not in _STAGES:
            raise ValueError(f"hourglass must be one of {HOURGLASSES}, found {name!r}")
        multiples, num_blocks = _STAGES[name]
        stages = [channels * multiple for multiple in multiples]
        self.out_channels = stages[0]
        self.stride = 2 ** (len(stages) - 1)
        self.stem = nn.Sequential(
            _conv_norm(in_channels, channels, 3, norm=norm),
            nn.ReLU(),
            _ResidualBlock(channels, stages[0], norm=norm),
        )
        self.stages = _EncoderDecoder(stages, num_blocks, norm=norm)
        self.out = nn.Sequential(_conv_norm(stages[0], stages[0], 3, norm=norm), nn.ReLU())

    def check_side(self, side: int) -> None:
        """Raise ValueError unless a RoI feature of (side, side) cells can be halved often enough."""
        if side % self.stride:
            raise ValueError(
                f"the RoI feature has {side} x {side} cells, expected a multiple of {self.stride}"
            )

    def forward(self, features: Tensor) -> Tensor:
        """(N, in_channels, side, side) -> (N, 2n, side, side)."""
        return self.out(self.stages(self.stem(features)))


class _EncoderDecoder(nn.Module):
    """A stage and all deeper ones: a branch at full side, and the deeper stages at half side."""

    def __init__(self, channels: Sequence[int], num_blocks: Sequence[int], *, norm: Norm):
        super().__init__()
        here, below = channels[:2]
        count = num_blocks[0]
        self.beside = _blocks([here] * (count + 1), norm=norm)
        self.down = _blocks([here, *[below] * count], norm=norm, stride=2)
        self.below = (
            _EncoderDecoder(channels[1:], num_blocks[1:], norm=norm)
            if len(channels) > 2
            else _blocks([below] * (num_blocks[1] + 1), norm=norm)
        )
        self.up = _blocks([*[below] * count, here], norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        through = self.up(self.below(self.down(x)))
        return self.beside(x) + F.interpolate(through, scale_factor=2.0, mode="nearest")


class _ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shapes differ."""

    def __init__(self, in_channels: int, out_channels: int, *, norm: Norm, stride: int = 1):
        super().__init__()
        self.convs = nn.Sequential(
            _conv_norm(in_channels, out_channels, 3, norm=norm, stride=stride),
            nn.ReLU(),
            _conv_norm(out_channels, out_channels, 3, norm=norm),
        )
        same_shape = in_channels == out_channels and stride == 1
        self.shortcut = (
            nn.Identity()
            if same_shape
            else _conv_norm(in_channels, out_channels, 1, norm=norm, stride=stride)
        )

    def forward(self, x: Tensor) -> Tensor:
        return (self.convs(x) + self.shortcut(x)).relu()


def _blocks(channels: Sequence[int], *, norm: Norm, stride: int = 1) -> nn.Sequential:
    """A residual block from each number of channels to the next; the first has the stride."""
    pairs = itertools.pairwise(channels)
    return nn.Sequential(
        *(_ResidualBlock(i, o, norm=norm, stride=1 if k else stride) for k, (i, o) in enumerate(pairs))
    )


def _conv_norm(
    in_channels: int, out_channels: int, kernel_size: int, *, norm: Norm, stride: int = 1
) -> nn.Sequential:
    conv = nn.Conv2d(
        in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2, bias=False
    )
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, norm(out_channels))
