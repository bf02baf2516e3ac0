"""
The method as the original code computes it, spelled out in float64 without torch.nn: the masks of all
K classes for every RoI, of which one in K is picked.
"""

import torch
from torch import Tensor


def transfer(embeddings: Tensor, layers: list[tuple[Tensor, Tensor]], activation: str) -> Tensor:
    """(K, D) -> (K, C): ``layers`` are (weight, bias) pairs."""
    x = embeddings
    for i, (weight, bias) in enumerate(layers):
        if i > 0:
            x = torch.maximum(x, (0.1 if activation == "leaky_relu" else 0.0) * x)
        x = (x[:, None, :] * weight[None, :, :]).sum(2) + bias
    return x


def all_class_logits(features: Tensor, class_weights: Tensor) -> Tensor:
    """(N, C, M, M), (K, C) -> (N, K, M, M)."""
    return (features[:, None] * class_weights[None, :, :, None, None]).sum(2)


def pick(logits: Tensor, classes: Tensor) -> Tensor:
    """(N, K, M, M) -> (N, M, M), the map of each RoI's class."""
    maps = [logits[n, c] for n, c in enumerate(classes.tolist())]
    return torch.stack(maps) if maps else logits[:, 0]


def mlp(features: Tensor, layers: list[tuple[Tensor, Tensor]], side: int) -> Tensor:
    """(N, C, S, S) -> (N, side, side)."""
    n, channels, height, width = features.shape
    x = features.reshape(n, channels * height * width)
    for i, (weight, bias) in enumerate(layers):
        if i > 0:
            x = x.clamp(min=0)
        x = x @ weight.T + bias
    return x.reshape(n, side, side)


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over all cells of -log p(target)."""
    p = 1 / (1 + torch.exp(-logits))
    return -(targets * p.log() + (1 - targets) * (1 - p).log()).mean()
