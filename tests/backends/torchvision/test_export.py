import copy

import pytest
import torch
from torch import nn

from ... import exports
from . import tiny

NAMES = ("boxes", "labels", "scores", "masks")

# What tracing and the exporter say of Detectron2 and torchvision fills pages.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def model():
    return tiny.build(box_score_thresh=0.0).eval()


class OneImage(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, image):
        (found,) = self.model([image])
        return tuple(found[name] for name in NAMES)


@torch.no_grad()
def test_onnxruntime_finds_what_the_model_finds_in_images_with_none_one_and_many(model):
    model = copy.deepcopy(model)
    score, numbers = exports.threshold(lambda image: model([image])[0]["scores"])
    model.roi_heads.score_thresh = score
    exported = OneImage(model).eval()
    run = exports.onnx_session(exported, exports.image(numbers[-1]))
    counts = []
    for number in numbers:
        for size in exports.SIZES:
            image = exports.image(number, size)
            expected = exported(image)
            exports.check_equal(run(image), expected)
            counts.append(len(expected[0]))
    assert counts[::2][:2] == [0, 1] and counts[4] > 1


def test_compiled_heads_do_what_they_did(model):
    compiled = copy.deepcopy(model)
    for part in ("box_head", "box_predictor", "mask_head", "mask_predictor"):
        getattr(compiled.roi_heads, part).compile(backend="eager")
    with torch.no_grad():
        for number in (0, 1):
            image = exports.image(number)
            found, expected = compiled([image])[0], model([image])[0]
            exports.check_equal([found[n] for n in NAMES], [expected[n] for n in NAMES])
    targets = [tiny.target([1, 2], [True, False])]
    losses = [tiny.losses(copy.deepcopy(m), targets) for m in (compiled, model)]
    assert {k: v.item() for k, v in losses[0].items()} == pytest.approx(
        {k: v.item() for k, v in losses[1].items()}, rel=1e-4
    )
