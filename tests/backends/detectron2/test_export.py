import copy

import pytest
import torch
from detectron2.export import TracingAdapter
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from ... import exports
from .test_pipelines import image_of_two, partially_supervised, stock_config

# What tracing and the exporter say of Detectron2 and torchvision fills pages.
pytestmark = pytest.mark.filterwarnings("ignore")


def build(name, *, gathered=False):
    cfg = stock_config(name)
    # A backbone that an untrained model does not make large numbers with.
    cfg.MODEL.RESNETS.NORM = cfg.MODEL.FPN.NORM = "GN"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.ROI_BOX_HEAD.GATHERED_REGRESSION = gathered
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    torch.manual_seed(0)
    return build_model(partially_supervised(cfg)).eval()


def detect(model, image):
    return model.inference([{"image": 255 * image}], do_postprocess=False)[0]


@torch.no_grad()
@pytest.mark.parametrize(("name", "gathered"), [("FPN", True), ("cascade", False), ("C4", False)])
def test_traces_find_what_the_model_finds_in_images_with_none_one_and_many(name, gathered):
    model = build(name, gathered=gathered)
    score, numbers = exports.threshold(lambda image: detect(model, image).scores)
    for predictor in model.roi_heads.box_predictors:
        predictor.test_score_thresh = score
    adapter = TracingAdapter(
        model,
        [{"image": exports.image(numbers[-1])}],
        lambda model, inputs: [{"instances": detect(model, inputs[0]["image"])}],
    ).eval()
    traced = torch.jit.trace(adapter, adapter.flattened_inputs)
    runs = [traced]
    if name != "C4":  # whose res5 is group-normalised here, which ONNX cannot do of no RoI
        runs.append(exports.onnx_session(adapter, adapter.flattened_inputs[0]))
    counts = []
    for number in numbers:
        for size in exports.SIZES:
            image = exports.image(number, size)
            expected = adapter(image)
            for run in runs:
                exports.check_equal(run(image), expected)
            counts.append(len(expected[0]))
    assert counts[::2][:2] == [0, 1] and counts[4] > 1


def test_compiled_heads_do_what_they_did():
    model = build("FPN")
    compiled = copy.deepcopy(model)
    compiled.roi_heads.mask_head.compile(backend="eager")
    for predictor in compiled.roi_heads.box_predictors:
        predictor.compile(backend="eager")
    with torch.no_grad():
        for number in (0, 1):
            found, expected = (detect(m, exports.image(number)) for m in (compiled, model))
            assert torch.equal(found.pred_classes, expected.pred_classes) and len(found) > 0
            assert torch.allclose(found.pred_masks, expected.pred_masks, atol=1e-4)
    losses = []
    for each in (compiled, model):
        torch.manual_seed(0)
        with EventStorage():
            losses.append({k: v.item() for k, v in each.train()([image_of_two()]).items()})
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
