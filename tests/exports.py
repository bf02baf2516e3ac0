"""Traces and ONNX files of models, for tests of both backends."""

import io
from collections.abc import Callable, Sequence

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

SIZES = ((128, 160), (96, 192))


def image(number: int, size: tuple[int, int] = SIZES[0]) -> Tensor:
    """(3, H, W) in [0, 1]."""
    contrast = (0.01, 0.2, 0.6)[number % 3]
    return 0.4 + contrast * torch.rand(3, *size, generator=torch.Generator().manual_seed(number))


@torch.no_grad()
def threshold(scores_of: Callable[[Tensor], Tensor]) -> tuple[float, list[int]]:
    """
    Args:
        scores_of: the scores of all detections in an image, best first.

    Returns:
        A score above which some image has no detection, some has one, and some has more, and these images.
    """
    scores = [scores_of(image(number)) for number in range(24)]
    best = sorted(scores, key=lambda of_image: -of_image[0].item())
    for of_image in best[1:]:
        between = (of_image[0] + of_image[1]).item() / 2
        counts = [int((s > between).sum()) for s in scores]
        if {0, 1} < set(counts):
            return between, [counts.index(0), counts.index(1), counts.index(max(counts))]
    raise AssertionError("no image has one detection alone")


def onnx_session(model: nn.Module, example: Tensor) -> Callable[[Tensor], list[Tensor]]:
    """What runs a model of one image by onnxruntime."""
    file = io.BytesIO()
    torch.onnx.export(
        model,
        (example,),
        file,
        opset_version=16,
        dynamo=False,
        input_names=["image"],
        dynamic_axes={"image": {1: "height", 2: "width"}},
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(file.getvalue(), options)
    return lambda x: [torch.from_numpy(np.asarray(y)) for y in session.run(None, {"image": x.numpy()})]


def check_equal(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape and torch.allclose(a.float(), b.float(), atol=2e-4)
