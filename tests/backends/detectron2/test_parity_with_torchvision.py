"""The two backends, written independently around one method, compared with each other."""

import pytest
import torch
from detectron2.structures import Boxes
from torch import nn

from maskx_d2.backends.torchvision import maskx_rcnn_resnet_fpn

from ...evaluation import synthetic
from ..torchvision import test_training as torchvision_evaluation
from . import test_evaluator as detectron2_evaluation
from . import tiny

K = tiny.NUM_CLASSES
LEVELS = (64, 32, 16, 8)  # sides of res2 ... res5


class Given(nn.Module):
    """A bottom-up network that returns what it is given."""

    def forward(self, features):
        return features


def detectron2_model(predictor, reduced_channels):
    cfg = tiny.model_config(
        *("MODEL.ROI_MASK_HEAD.MASKX_PREDICTOR", predictor),
        *("MODEL.ROI_MASK_HEAD.MLP_BRANCH.REDUCED_CHANNELS", reduced_channels),
        *tiny.ALL_LEVELS,
        # As torchvision pools: without the half-pixel shift of ROIAlignV2.
        *("MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIAlign", "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO", 2),
    )
    model = tiny.build(cfg, seed=1).eval()
    model.backbone.bottom_up = Given()
    # Weights of a size that makes differences visible.
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


def torchvision_model(predictor, reduced_channels):
    torch.manual_seed(2)
    model = maskx_rcnn_resnet_fpn(
        depth=18,
        num_classes=K + 1,
        predictor=predictor,
        transfer_hidden_dim=8,
        mlp_reduced_channels=reduced_channels,
        fpn_channels=16,
        box_head_dim=12,
        mask_head_channels=(8, 8),
    )
    return model.eval()


def load(model, detectron2_model):
    """Detectron2's weights under torchvision's names; its box predictor has the background last."""
    theirs = detectron2_model.state_dict()
    state = {}
    for level in range(4):
        for part, name in (("inner_blocks", "lateral"), ("layer_blocks", "output")):
            for kind in ("weight", "bias"):
                state[f"backbone.fpn.{part}.{level}.0.{kind}"] = theirs[
                    f"backbone.fpn_{name}{level + 2}.{kind}"
                ]
    for kind in ("weight", "bias"):
        classifier = theirs[f"roi_heads.box_predictor.cls_score.{kind}"]
        regressor = theirs[f"roi_heads.box_predictor.bbox_pred.{kind}"]
        state[f"roi_heads.box_predictor.cls_score.{kind}"] = classifier.roll(1, 0)
        background = torch.full_like(regressor[:4], 7.0)
        state[f"roi_heads.box_predictor.bbox_pred.{kind}"] = torch.cat([background, regressor])
        head = "roi_heads.mask_head."
        for i in range(2):
            state[f"{head}{i}.0.{kind}"] = theirs[f"{head}mask_fcn{i + 1}.{kind}"]
        state[f"roi_heads.mask_predictor.conv5_mask.{kind}"] = theirs[f"{head}deconv.{kind}"]
    for name, value in theirs.items():
        if name.startswith(f"{head}predictor."):
            own = name.removeprefix(f"{head}predictor.")
            state[f"roi_heads.mask_predictor.mask_fcn_logits.{own}"] = value
    _, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    loaded = {n for n in model.state_dict() if "fpn" in n or "box_predictor" in n or "mask_" in n}
    assert loaded == set(state)


@pytest.mark.parametrize("predictor", ["transfer", "agnostic", "class_specific"])
@pytest.mark.parametrize("reduced_channels", [0, 4])
def test_one_set_of_weights_gives_one_set_of_mask_logits(predictor, reduced_channels):
    """FPN, RoIAlign, trunk, class embeddings, T, MLP branch: everything between backbone and logits."""
    theirs = detectron2_model(predictor, reduced_channels)
    ours = torchvision_model(predictor, reduced_channels)
    load(ours, theirs)
    generator = torch.Generator().manual_seed(0)
    features = {
        f"res{i + 2}": torch.randn(2, 64 * 2**i, side, side, generator=generator)
        for i, side in enumerate(LEVELS)
    }
    corners = torch.rand(2, 9, 2, generator=generator) * 120
    # From 8 to 250 pixels, so that every level of the FPN is read.
    sizes = 8 * 2 ** (5 * torch.rand(2, 9, 2, generator=generator))
    boxes = torch.cat([corners, corners + sizes], dim=2)
    classes = torch.randint(K, (2, 9), generator=generator)
    with torch.no_grad():
        pyramid = theirs.backbone(features)
        heads = theirs.roi_heads
        pooled = heads.mask_pooler([pyramid[f] for f in heads.mask_in_features], [Boxes(b) for b in boxes])
        expected = heads.mask_head.mask_logits(pooled, classes.flatten())
        found = ours.roi_heads._mask_logits(
            ours.backbone.fpn({str(i): f for i, f in enumerate(features.values())}),
            list(boxes),
            list(classes),
            [(256, 256)] * 2,
        )
    assert expected.shape == (18, 28, 28) and expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_same_predictions_have_the_same_ap(tmp_path):
    content = synthetic.ground_truth()
    results = detectron2_evaluation.boxes_as_processed(synthetic.detections(content))
    for result in results:
        result["score"] = float(torch.tensor(result["score"]))
    (tmp_path / "d2").mkdir()
    (tmp_path / "tv").mkdir()
    _, expected = detectron2_evaluation.evaluate(content, results, tmp_path / "d2")
    group_a = detectron2_evaluation.GROUP_A
    _, found = torchvision_evaluation.evaluate(content, results, tmp_path / "tv", group_a)
    assert set(found) == set(expected) == {"bbox", "segm"}
    for task, of_group in expected.items():
        for group, values in of_group.items():
            assert found[task][group] == pytest.approx(values, abs=1e-9)
