"""Masks and boxes of an image, for tests that paste one into the other."""

import torch

HEIGHT, WIDTH = 60, 90
BOXES = {
    "inside": [10.3, 20.7, 40.2, 50.9],
    "the whole image": [0.0, 0.0, 90.0, 60.0],
    "at the far corner": [70.5, 40.5, 90.0, 60.0],
    "beyond the image": [-7.5, -3.2, 95.4, 64.8],
    "smaller than a pixel": [30.2, 30.2, 30.7, 30.6],
    "whole numbers": [5.0, 6.0, 25.0, 26.0],
}


def drawn(number, generator):
    """Probabilities and boxes."""
    corners = torch.rand(number, 2, generator=generator) * torch.tensor([WIDTH - 2, HEIGHT - 2])
    sides = torch.rand(number, 2, generator=generator) * 40
    boxes = torch.cat([corners, corners + sides], dim=1)
    boxes = torch.minimum(boxes, torch.tensor([WIDTH, HEIGHT] * 2, dtype=torch.float32))
    return torch.rand(number, 28, 28, generator=generator), boxes
