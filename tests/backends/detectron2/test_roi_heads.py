import functools

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.structures import Keypoints, PolygonMasks
from waits import Waits

from maskx_d2.backends.detectron2 import PartiallySupervisedROIHeads

from . import tiny

STOCK = [
    *("MODEL.ROI_HEADS.NAME", "StandardROIHeads"),
    *("MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"),
]
CLASS_SPECIFIC = [
    *("MODEL.ROI_MASK_HEAD.MASKX_PREDICTOR", "class_specific"),
    *("MODEL.ROI_MASK_HEAD.MLP_BRANCH.NUM_LAYERS", 0),
]


def same_weights(cfg_a, cfg_b):
    """Two models with equal weights, all of them drawn wide enough to matter."""
    a, b = tiny.build(cfg_a), tiny.build(cfg_b)
    with torch.no_grad():
        for name, parameter in a.named_parameters():
            if "predictor" in name:
                parameter.normal_(std=0.3)
    b.load_state_dict(a.state_dict(), strict=True)
    return a, b


def full_batch(**kwargs):
    return tiny.batch(
        tiny.instances([0, 3, 1], [True, True, True], **kwargs),
        tiny.instances([2, 2], [True, True], **kwargs),
    )


@pytest.mark.parametrize("mask_head", ["MaskXHead", "MaskRCNNConvUpsampleHead"])
def test_with_all_masks_losses_and_gradients_are_those_of_stock_mask_rcnn(mask_head):
    cfg = tiny.model_config(*CLASS_SPECIFIC, "MODEL.ROI_MASK_HEAD.NAME", mask_head)
    ours, stock = same_weights(cfg, tiny.model_config(*STOCK))
    found, expected = tiny.losses(ours, full_batch()), tiny.losses(stock, full_batch())
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)
    expected = tiny.gradients(stock, sum(expected.values()))
    for name, gradient in tiny.gradients(ours, sum(found.values())).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=name)


def test_with_all_masks_detections_and_masks_are_those_of_stock_mask_rcnn():
    ours, stock = same_weights(tiny.model_config(*CLASS_SPECIFIC), tiny.model_config(*STOCK))
    inputs = full_batch()
    with torch.no_grad():
        found, expected = ours.eval()(inputs), stock.eval()(inputs)
    for a, b in zip(found, expected, strict=True):
        a, b = a["instances"], b["instances"]
        assert len(b) > 0
        torch.testing.assert_close(a.pred_boxes.tensor, b.pred_boxes.tensor)
        torch.testing.assert_close(a.scores, b.scores)
        assert torch.equal(a.pred_classes, b.pred_classes)
        assert b.pred_masks.any()
        assert torch.equal(a.pred_masks, b.pred_masks)


# ---- Masks that must not be seen ----


def assert_equal_gradients(found, expected):
    """Bit for bit; FPN levels that nothing reads have none."""
    assert any(g is not None and g.abs().sum() > 0 for g in found.values())
    for name, gradient in found.items():
        other = expected[name]
        assert (gradient is None and other is None) or torch.equal(gradient, other), name


def assert_masks_change_nothing(model, inputs_of):
    """``inputs_of`` makes a batch in which the masks that must not be seen are full, or empty."""

    def step(mask_value):
        losses = tiny.losses(model, inputs_of(mask_value))
        return losses, tiny.gradients(model, sum(losses.values()))

    (losses, gradients), (other_losses, other_gradients) = step(True), step(False)
    assert losses["loss_mask"] > 0
    assert losses == other_losses
    assert_equal_gradients(gradients, other_gradients)


@pytest.mark.parametrize("mask_head", ["MaskXHead", "MaskRCNNConvUpsampleHead"])
def test_what_is_in_the_masks_of_instances_without_mask_changes_nothing(mask_head):
    def inputs_of(mask_value):
        return tiny.batch(
            tiny.instances([0, 3, 1], [True, False, True], mask_value),
            tiny.instances([2], [False], mask_value),
        )

    model = tiny.build(tiny.model_config("MODEL.ROI_MASK_HEAD.NAME", mask_head))
    assert_masks_change_nothing(model, inputs_of)


def test_what_is_in_the_masks_of_classes_without_masks_changes_nothing():
    def inputs_of(mask_value):
        objects = tiny.instances([0, 3, 1, 2], [True, False, True, False], mask_value)
        objects.gt_has_mask[:] = True  # the data say that all have masks; the split takes them away
        return tiny.batch(objects)

    model = tiny.build(tiny.model_config())
    model.roi_heads._get_class_has_mask = lambda: [True, True, False, False]
    assert_masks_change_nothing(model, inputs_of)


def test_masks_that_may_be_seen_do_change_the_loss():
    model = tiny.build(tiny.model_config())
    objects = tiny.instances([0], [True])
    loss = tiny.losses(model, tiny.batch(objects))["loss_mask"]
    objects.gt_masks.tensor[:] = False
    assert loss != tiny.losses(model, tiny.batch(objects))["loss_mask"]


def test_the_mask_loss_is_that_of_the_instances_with_masks_alone():
    """Against stock ROI heads that are given these instances and RoIs only."""
    cfg = tiny.model_config(*CLASS_SPECIFIC)
    ours, stock = same_weights(cfg, tiny.model_config(*STOCK))
    objects = tiny.instances([0, 3, 1, 2], [True, False, True, False])
    images = tiny.batch(objects)
    features = ours.backbone(ours.preprocess_image(images).tensor)
    proposals = tiny.instances([0, 3, 1, 2])
    proposals.proposal_boxes = proposals.gt_boxes
    proposals.gt_has_mask = objects.gt_has_mask
    ours.train(), stock.train()
    with tiny.storage():
        found = ours.roi_heads._forward_mask(features, [proposals])
        with_masks = proposals[objects.gt_has_mask]
        with_masks.remove("gt_has_mask")
        expected = stock.roi_heads._forward_mask(features, [with_masks])
    torch.testing.assert_close(found["loss_mask"], expected["loss_mask"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("has_mask", [None, [False, False]])
def test_box_losses_see_instances_without_masks(has_mask):
    """The box losses are those of stock Faster R-CNN on the same images, whatever has a mask."""
    faster_rcnn = tiny.model_config(*STOCK, "MODEL.MASK_ON", False)
    ours, stock = tiny.build(tiny.model_config()), tiny.build(faster_rcnn)
    stock.load_state_dict(ours.state_dict(), strict=False)
    found = tiny.losses(ours, tiny.batch(tiny.instances([1, 2], has_mask)))
    for name, value in tiny.losses(stock, tiny.batch(tiny.instances([1, 2]))).items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("gathered", [False, True])
def test_a_box_predictor_in_eval_mode_has_its_losses_all_the_same(gathered):
    model = tiny.build(tiny.model_config("MODEL.ROI_BOX_HEAD.GATHERED_REGRESSION", gathered))
    batch = tiny.batch(tiny.instances([0, 3], [True, False]))
    expected = tiny.losses(model, batch)
    assert {"loss_cls", "loss_box_reg", "loss_mask"} <= expected.keys()
    train = model.train
    model.train = lambda: train() and model.roi_heads.box_predictor.eval()
    found = tiny.losses(model, batch)
    assert not model.roi_heads.box_predictor.training
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_a_frozen_detector_is_an_argument_of_the_roi_heads():
    cfg = tiny.model_config()
    heads = build_roi_heads_with(cfg, detector_is_frozen=True)
    assert heads.detector_is_frozen and heads.training
    model = tiny.build(cfg)
    heads.load_state_dict(model.roi_heads.state_dict())
    model.roi_heads = heads
    losses = tiny.losses(model, tiny.batch(tiny.instances([0, 3], [True, False])))
    assert {name for name in losses if not name.startswith("loss_rpn")} == {"loss_mask"}


def build_roi_heads_with(cfg, **options):
    shapes = {"p2": ShapeSpec(channels=16, stride=4)}
    arguments = PartiallySupervisedROIHeads.from_config(cfg, shapes)
    return PartiallySupervisedROIHeads(**{**arguments, **options})


def test_number_of_rois_with_masks_is_logged():
    model = tiny.build(tiny.model_config()).train()
    with tiny.storage() as events:
        model(tiny.batch(tiny.instances([0, 1], [False, False])))
    assert events.history("roi_head/num_mask_samples").latest() == 0
    assert events.history("roi_head/num_fg_samples").latest() > 0


# ---- Plugged into pipelines that know nothing of gt_has_mask ----


def test_targets_of_the_stock_mapper_are_taken_as_all_with_masks_or_none():
    model = tiny.build(tiny.model_config())
    with_masks, without = tiny.instances([0]), tiny.instances([1])
    without.remove("gt_masks")
    losses = tiny.losses(model, tiny.batch(with_masks, without))
    assert losses["loss_mask"] > 0
    assert tiny.losses(model, tiny.batch(without, without))["loss_mask"] == 0


def test_a_model_can_be_built_and_run_where_the_training_data_are_not():
    cfg = tiny.model_config(*("DATASETS.TRAIN", ("nowhere",), "DATASETS.CLASSES_WITH_MASKS", "nowhere.txt"))
    tiny.build(cfg).eval()(tiny.batch(tiny.instances([])))


def test_split_from_the_config_is_applied_at_the_first_step(tmp_path):
    from detectron2.data import MetadataCatalog

    MetadataCatalog.get("four_classes").thing_classes = ["a", "b", "c", "d"]
    (tmp_path / "split.txt").write_text("b\n")
    cfg = tiny.model_config(
        *("DATASETS.TRAIN", ("four_classes",), "DATASETS.CLASSES_WITH_MASKS", str(tmp_path / "split.txt"))
    )
    model = tiny.build(cfg)
    assert tiny.losses(model, tiny.batch(tiny.instances([0, 2])))["loss_mask"] == 0
    assert tiny.losses(model, tiny.batch(tiny.instances([0, 1])))["loss_mask"] > 0


def test_keypoint_heads_train_beside_it():
    keypoints = [
        *("MODEL.KEYPOINT_ON", True, "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", (8,)),
        *("MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", 2),
    ]
    class_specific = tiny.model_config(*CLASS_SPECIFIC, *keypoints)
    ours, stock = same_weights(class_specific, tiny.model_config(*STOCK, *keypoints))
    objects = tiny.instances([0, 3], [True, True])
    points = torch.cat([objects.gt_boxes.get_centers(), torch.full((2, 1), 2.0)], 1)
    objects.gt_keypoints = Keypoints(points[:, None].expand(2, 2, 3).contiguous())
    found, expected = tiny.losses(ours, tiny.batch(objects)), tiny.losses(stock, tiny.batch(objects))
    assert expected["loss_keypoint"] > 0
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)
    without_masks = tiny.batch(objects)
    without_masks[0]["instances"].gt_has_mask[:] = False
    losses = tiny.losses(ours, without_masks)
    assert losses["loss_mask"] == 0
    torch.testing.assert_close(losses["loss_keypoint"], expected["loss_keypoint"], rtol=0, atol=1e-6)


def test_a_mask_head_that_pools_for_itself_gets_the_instances_with_masks():
    """As PointRend's: no pooler, and the head is called with the feature maps."""

    class Head(torch.nn.Module):
        def forward(self, features, instances):
            assert set(features) == {"p2"} and features["p2"].ndim == 4
            return {
                "loss_mask": sum(len(i) for i in instances),
                "has_mask": [i.gt_has_mask for i in instances if len(i)],
            }

    model = tiny.build(tiny.model_config())
    model.roi_heads.mask_pooler, model.roi_heads.mask_head = None, Head()
    losses = tiny.losses(model, tiny.batch(tiny.instances([0, 1], [True, False]), tiny.instances([])))
    assert losses["loss_mask"] > 0
    assert all(has_mask.all() for has_mask in losses["has_mask"])


def test_class_has_mask_survives_a_copy_of_the_model():
    import copy

    model = tiny.build(tiny.model_config())
    model.roi_heads._get_class_has_mask = functools.partial(list, [False] * tiny.NUM_CLASSES)
    other = copy.deepcopy(model)
    assert tiny.losses(other, tiny.batch(tiny.instances([0])))["loss_mask"] == 0


def with_outlines(inputs):
    """The same with polygons for masks."""
    for image in inputs:
        boxes = image["instances"].gt_boxes.tensor.double().numpy()
        image["instances"].gt_masks = PolygonMasks([[box[[0, 1, 2, 1, 2, 3]]] for box in boxes])
    return inputs


@pytest.mark.parametrize("form", [lambda inputs: inputs, with_outlines], ids=["bitmask", "polygon"])
@pytest.mark.parametrize("kind", ["Standard", "Cascade"])
def test_a_step_waits_for_a_gpu_no_more_often_than_one_of_stock_mask_rcnn(kind, form):
    is_cascade = kind == "Cascade"
    common = [
        *("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", is_cascade),
        *("MODEL.ROI_MASK_HEAD.CLASS_EMBEDDING", "cls" if is_cascade else "cls+box"),
    ]
    ours = ["MODEL.ROI_HEADS.NAME", f"PartiallySupervised{'Cascade' * is_cascade}ROIHeads"]
    stock = [*STOCK, "MODEL.ROI_HEADS.NAME", f"{kind}ROIHeads"]

    def waits(options, has_mask=True):
        model = tiny.build(tiny.model_config(*options, *common))
        inputs = tiny.batch(
            tiny.instances([0, 3, 1], [True, has_mask, True]), tiny.instances([2, 2], [has_mask, True])
        )
        with Waits() as counter:
            sum(tiny.losses(model, form(inputs)).values()).backward()
        return counter

    expected = waits(stock)
    assert expected.counts["nonzero"] > 0 and expected.counts["_local_scalar_dense"] > 0
    for has_mask in (True, False):
        found = waits(ours, has_mask)
        assert found.total <= expected.total, (found.counts, expected.counts)
        assert found.counts["nonzero"] <= expected.counts["nonzero"]
