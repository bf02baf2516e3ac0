import copy

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.detection import FasterRCNN

from maskx_d2.backends.torchvision import MaskXRCNN, maskx_rcnn_resnet_fpn

from ...method import naive
from . import tiny

STOCK = {
    "weights": None,
    "weights_backbone": None,
    "num_classes": 6,
    "min_size": 160,
    "max_size": 224,
    "box_score_thresh": 0.0,
    "box_detections_per_img": 20,
}
OURS = {name: value for name, value in STOCK.items() if name != "weights"}


@pytest.fixture(scope="module")
def stock():
    """Torchvision's own model, with weights that give masks of all kinds."""
    torch.manual_seed(0)
    model = torchvision.models.detection.maskrcnn_resnet50_fpn(**STOCK)
    for parameter in model.roi_heads.mask_predictor.parameters():
        nn.init.normal_(parameter, std=0.05)
    # So that detections are of several classes.
    nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.5)
    return model


@pytest.fixture(scope="module")
def ours(stock):
    model = maskx_rcnn_resnet_fpn(predictor="class_specific", mlp_layers=0, **OURS)
    model.load_state_dict(stock.state_dict())
    return model


def sample_images():
    generator = torch.Generator().manual_seed(3)
    return [torch.rand(3, h, w, generator=generator) for h, w in ((150, 200), (220, 120), (96, 96))]


# ---- Parity with torchvision ----


def test_with_torchvisions_weights_boxes_scores_and_masks_are_torchvisions(stock, ours):
    with torch.no_grad():
        expected, found = stock.eval()(sample_images()), ours.eval()(sample_images())
    for theirs, mine in zip(expected, found, strict=True):
        assert set(mine) == set(theirs) == {"boxes", "labels", "scores", "masks"}
        assert len(theirs["boxes"]) == 20 and len(theirs["labels"].unique()) > 1
        for key in ("boxes", "labels", "scores"):
            assert torch.equal(mine[key], theirs[key])
        assert mine["masks"].dtype == theirs["masks"].dtype and mine["masks"].shape == theirs["masks"].shape
        torch.testing.assert_close(mine["masks"], theirs["masks"], rtol=0, atol=1e-5)
        assert 0.05 < (theirs["masks"] > 0.5).float().mean() < 0.95


def test_with_torchvisions_weights_losses_are_torchvisions(stock, ours):
    targets = [
        {
            "boxes": torch.tensor([[20.0, 10, 120, 90], [60, 50, 140, 140]]),
            "labels": torch.tensor([1, 5]),
            "masks": (torch.rand(2, 150, 200) > 0.4).to(torch.uint8),
        },
        {
            "boxes": torch.tensor([[5.0, 30, 100, 200]]),
            "labels": torch.tensor([3]),
            "masks": (torch.rand(1, 220, 120) > 0.4).to(torch.uint8),
        },
    ]
    expected = tiny.losses(stock, targets, inputs=sample_images()[:2])
    found = tiny.losses(ours, targets, inputs=sample_images()[:2])
    assert set(found) == set(expected)
    for name, loss in expected.items():
        assert loss > 0
        torch.testing.assert_close(found[name], loss)


def test_the_detector_is_torchvisions_with_any_predictor(stock):
    model = maskx_rcnn_resnet_fpn(**OURS)
    expected = {n: v.shape for n, v in stock.state_dict().items() if "mask_predictor" not in n}
    found = {n: v.shape for n, v in model.state_dict().items() if "mask_predictor" not in n}
    assert found == expected
    assert "roi_heads.mask_predictor.conv5_mask.weight" in model.state_dict()


def test_without_a_predictor_it_is_torchvisions_faster_rcnn():
    model = maskx_rcnn_resnet_fpn(predictor=None, **OURS)
    assert type(model) is FasterRCNN
    stock = torchvision.models.detection.fasterrcnn_resnet50_fpn(**STOCK)
    model.load_state_dict(stock.state_dict())


def test_settings_of_torchvisions_model_arrive():
    options = {
        "box_fg_iou_thresh": 0.6,
        "box_bg_iou_thresh": 0.4,
        "box_batch_size_per_image": 99,
        "box_positive_fraction": 0.3,
        "bbox_reg_weights": (1.0, 2.0, 3.0, 4.0),
        "box_score_thresh": 0.2,
        "box_nms_thresh": 0.7,
        "box_detections_per_img": 9,
    }
    torch.manual_seed(0)
    backbone = tiny.build().backbone
    expected = FasterRCNN(backbone, num_classes=5, **options).roi_heads
    found = tiny.build(**options).roi_heads
    for name in ("score_thresh", "nms_thresh", "detections_per_img"):
        assert getattr(found, name) == getattr(expected, name)
    for part in ("proposal_matcher", "fg_bg_sampler", "box_coder"):
        assert vars(getattr(found, part)) == vars(getattr(expected, part))


# ---- What is built ----


def test_the_defaults_are_the_papers_final_model():
    with torch.device("meta"):
        model = maskx_rcnn_resnet_fpn(num_classes=81)
    predictor = model.roi_heads.mask_predictor.mask_fcn_logits
    assert predictor.transfer[0].in_features == 5 * 1024
    assert [type(layer).__name__ for layer in predictor.transfer] == ["Linear", "LeakyReLU", "Linear"]
    assert predictor.class_embeddings.kind == "cls+box" and predictor.class_embeddings.stop_grad
    assert [layer.weight.shape for layer in predictor.mlp_branch.layers] == [(28 * 28, 256 * 28 * 28)]


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_every_depth_is_built_with_that_resnet(depth):
    with torch.device("meta"):
        body = maskx_rcnn_resnet_fpn(depth=depth, predictor="agnostic", mlp_layers=0).backbone.body
        stock = getattr(torchvision.models, f"resnet{depth}")()
    expected = {n: p.shape for n, p in stock.named_parameters() if not n.startswith("fc.")}
    assert {n: p.shape for n, p in body.named_parameters()} == expected


def test_mask_logits_are_those_of_the_formula():
    model = tiny.build().double().eval()
    heads = model.roi_heads
    features, classes = torch.randn(5, 8, 14, 14, dtype=torch.float64), torch.tensor([3, 0, 2, 2, 1])
    with torch.no_grad():
        found = heads.mask_predictor(features, classes)
        box = heads.box_predictor
        rows = [
            torch.cat(
                [box.cls_score.weight[c + 1], box.bbox_pred.weight[4 * (c + 1) : 4 * (c + 2)].flatten()]
            )
            for c in range(tiny.NUM_CLASSES)
        ]
        weights = heads.mask_predictor.mask_fcn_logits.transfer(torch.stack(rows))
        upsampled = heads.mask_predictor.conv5_mask(features).relu()
        expected = naive.pick(naive.all_class_logits(upsampled, weights), classes)
        expected = expected + heads.mask_predictor.mask_fcn_logits.mlp_branch(features)
    torch.testing.assert_close(found, expected)


def test_class_embeddings_are_read_from_the_box_predictor_of_the_time():
    model = tiny.build().eval()
    predictor = model.roi_heads.mask_predictor.mask_fcn_logits
    with torch.no_grad():
        before = predictor.all_class_weights()
        # What torchvision's tutorials do to fine-tune.
        model.roi_heads.box_predictor = copy.deepcopy(model.roi_heads.box_predictor)
        model.roi_heads.box_predictor.cls_score.weight.mul_(2)
        after = predictor.all_class_weights()
    assert not torch.equal(before, after)


def test_a_copy_reads_its_own_box_predictor():
    model = tiny.build().eval()
    other = copy.deepcopy(model)
    with torch.no_grad():
        before = other.roi_heads.mask_predictor.mask_fcn_logits.all_class_weights()
        model.roi_heads.box_predictor.cls_score.weight.mul_(2)
        assert torch.equal(other.roi_heads.mask_predictor.mask_fcn_logits.all_class_weights(), before)
        other.roi_heads.box_predictor.cls_score.weight.mul_(2)
        assert not torch.equal(other.roi_heads.mask_predictor.mask_fcn_logits.all_class_weights(), before)


def test_a_class_specific_checkpoint_of_its_own_loads():
    state = tiny.build(predictor="class_specific", seed=1).state_dict()
    model = tiny.build(predictor="class_specific", seed=2)
    model.load_state_dict(state)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_pretrained_backbone_is_frozen_as_in_torchvision(monkeypatch):
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    state = torchvision.models.resnet18().state_dict()
    monkeypatch.setattr(type(weights), "get_state_dict", lambda *args, **kwargs: state)
    for name in ("DEFAULT", weights):
        model = tiny.build(weights_backbone=name, norm=None)
        assert torch.equal(model.backbone.body.layer1[0].conv1.weight, state["layer1.0.conv1.weight"])
        trained = {n.split(".")[0] for n, p in model.backbone.body.named_parameters() if p.requires_grad}
        assert trained == {"layer2", "layer3", "layer4"}
        assert type(model.backbone.body.bn1).__name__ == "FrozenBatchNorm2d"
    assert type(tiny.build(norm=None).backbone.body.bn1).__name__ == "BatchNorm2d"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 20}, r"depth is 20, expected one of 18, 34, 50, 101, 152"),
        ({"predictor": "magic"}, r"mask predictor must be one of .*'transfer'.*, found 'magic'"),
        ({"norm": "LN"}, r"norm is 'LN', expected one of 'BN', 'FrozenBN', 'GN'"),
        ({"num_classes": 1}, r"num_classes is 1, expected the background and at least one class"),
        ({"anchor_sizes": [[32]]}, r"anchor_sizes has 1 entries, expected one for each of the 5"),
        ({"class_embedding": "file"}, r"class embedding 'file' needs a table of \(4, D\), found none"),
    ],
)
def test_errors_name_the_argument_what_was_found_and_what_was_expected(options, message):
    with pytest.raises(ValueError, match=message):
        tiny.build(**options)


# ---- torch.compile and torch.export ----


class MaskHead(nn.Module):
    """All of the mask head: from RoI features to mask logits."""

    def __init__(self, roi_heads):
        super().__init__()
        self.mask_head, self.mask_predictor = roi_heads.mask_head, roi_heads.mask_predictor

    def forward(self, roi_features, classes):
        return self.mask_predictor(self.mask_head(roi_features), classes)


@pytest.mark.parametrize("predictor", ["transfer", "agnostic", "class_specific"])
@pytest.mark.parametrize("reduced_channels", [0, 4])
def test_the_mask_head_can_be_exported_for_any_number_of_rois(predictor, reduced_channels):
    head = MaskHead(tiny.build(predictor=predictor, mlp_reduced_channels=reduced_channels).roi_heads).eval()
    features, classes = torch.randn(6, 16, 14, 14), torch.tensor([0, 3, 1, 1, 2, 0])
    rois = torch.export.Dim("rois", min=1)
    exported = torch.export.export(
        head, (features, classes), dynamic_shapes={"roi_features": {0: rois}, "classes": {0: rois}}
    ).module()
    with torch.no_grad():
        for count in (6, 3, 1):
            expected = head(features[:count], classes[:count])
            torch.testing.assert_close(exported(features[:count], classes[:count]), expected)


@pytest.mark.parametrize("predictor", ["transfer", "agnostic", "class_specific"])
def test_the_compiled_mask_head_gives_the_same_logits_and_gradients(predictor):
    head = MaskHead(tiny.build(predictor=predictor).roi_heads)
    features, classes = torch.randn(6, 16, 14, 14), torch.tensor([0, 3, 1, 1, 2, 0])
    compiled = torch.compile(head, backend="aot_eager")
    for mode in (True, False):
        head.train(mode)
        torch.testing.assert_close(compiled(features, classes), head(features, classes))
    head.train()
    found, expected = (tiny.gradients(head, f(features, classes).square().sum()) for f in (compiled, head))
    assert set(found) == set(expected) and len(found) > 5
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)


def test_mask_x_is_what_is_built():
    assert isinstance(tiny.build(), MaskXRCNN)
