import pytest
import torch

from . import tiny

MASK_HEAD = "roi_heads.mask_head."


def frozen_model(*overrides):
    cfg = tiny.model_config(*overrides, meta_architecture="FrozenDetectorRCNN")
    model = tiny.build(cfg)
    model.load_state_dict(model.state_dict())
    return model


def test_training_changes_the_mask_head_and_nothing_else_bit_for_bit():
    # BatchNorm in the backbone: its running statistics must not move either.
    model = frozen_model("MODEL.RESNETS.NORM", "BN", "MODEL.FPN.NORM", "BN")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert any("running_mean" in name for name in before)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        losses = tiny.losses(model, tiny.batch(tiny.instances([0, 1, 2], [True, True, False])))
        optimizer.zero_grad()
        losses["loss_mask"].backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) is not name.startswith(MASK_HEAD), name


def test_the_only_loss_is_that_of_the_masks():
    model = frozen_model()
    assert set(tiny.losses(model, tiny.batch(tiny.instances([0], [True])))) == {"loss_mask"}


def test_frozen_parts_have_no_gradients_and_stay_in_eval_mode():
    model = frozen_model().train()
    assert model.training and model.roi_heads.training
    for name, module in model.named_modules():
        if name.startswith(MASK_HEAD):
            assert module.training, name
        elif name.startswith(("backbone", "proposal_generator", "roi_heads.box")):
            assert not module.training, name
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad is name.startswith(MASK_HEAD), name
    assert not model.eval().roi_heads.mask_head.training


def test_only_positive_rois_of_instances_with_masks_are_sampled():
    model = frozen_model().train()
    objects = tiny.instances([0, 1, 2, 3], [True, False, True, False])
    proposals = tiny.instances([0, 1, 2, 3])
    proposals.proposal_boxes = proposals.gt_boxes
    proposals.objectness_logits = torch.zeros(4)
    for name in ("gt_boxes", "gt_classes", "gt_masks"):
        proposals.remove(name)
    with tiny.storage():
        (sampled,) = model.roi_heads.label_and_sample_proposals([proposals], [objects])
    # Detectron2 adds the boxes of the ground truth to the proposals.
    assert set(sampled.gt_classes.tolist()) == {0, 2}
    assert sampled.gt_has_mask.all()


def test_batches_without_masks_or_objects_give_zero_gradients():
    model = frozen_model()
    for inputs in (
        tiny.batch(tiny.instances([0], [False]), tiny.instances([])),
        tiny.batch(tiny.instances([])),
    ):
        loss = tiny.losses(model, inputs)["loss_mask"]
        assert loss.item() == 0
        assert all(g is not None and g.abs().sum() == 0 for g in tiny.gradients(model, loss).values())


def test_the_mask_loss_is_that_of_end_to_end_training_on_the_same_rois():
    frozen, joint = frozen_model(), tiny.build(tiny.model_config())
    joint.load_state_dict(frozen.state_dict())
    objects = tiny.instances([0, 1], [True, True])
    proposals = tiny.instances([0, 1], [True, True])
    proposals.proposal_boxes = proposals.gt_boxes
    features = frozen.eval().backbone(frozen.preprocess_image(tiny.batch(objects)).tensor)
    frozen.train(), joint.train()
    with tiny.storage():
        found, expected = (m.roi_heads._forward_mask(features, [proposals]) for m in (frozen, joint))
    assert torch.equal(found["loss_mask"], expected["loss_mask"])


def test_inference_is_that_of_the_plain_detector():
    frozen, plain = frozen_model(), tiny.build(tiny.model_config())
    plain.load_state_dict(frozen.state_dict())
    inputs = tiny.batch(tiny.instances([]))
    with torch.no_grad():
        (a,), (b,) = frozen.eval()(inputs), plain.eval()(inputs)
    assert torch.equal(a["instances"].pred_boxes.tensor, b["instances"].pred_boxes.tensor)
    assert torch.equal(a["instances"].pred_masks, b["instances"].pred_masks)


def test_keypoint_head_is_frozen_too():
    model = frozen_model("MODEL.KEYPOINT_ON", True, "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", (8,))
    assert set(tiny.losses(model, tiny.batch(tiny.instances([0], [True])))) == {"loss_mask"}


def test_training_on_a_detector_without_weights_is_an_error():
    cfg = tiny.model_config(meta_architecture="FrozenDetectorRCNN")
    inputs = tiny.batch(tiny.instances([0]))
    model = tiny.build(cfg)
    with pytest.raises(ValueError, match=r"MODEL.WEIGHTS holds no weights for .* checkpoint of stage 1"):
        tiny.losses(model, inputs)
    backbone_only = {n: v for n, v in model.state_dict().items() if n.startswith("backbone")}
    model.load_state_dict(backbone_only, strict=False)
    with pytest.raises(ValueError, match="proposal_generator"):
        tiny.losses(model, inputs)
    detector = {n: v for n, v in model.state_dict().items() if not n.startswith(MASK_HEAD)}
    model.load_state_dict(detector, strict=False)
    tiny.losses(model, inputs)
    assert len(model.eval()(inputs)) == 1


def test_other_roi_heads_and_a_missing_mask_head_are_errors():
    for overrides, message in (
        (
            ["MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.ROI_MASK_HEAD.MASKX_PREDICTOR", "agnostic"],
            "needs 'PartiallySupervisedROIHeads'",
        ),
        (["MODEL.MASK_ON", False], "MODEL.MASK_ON is False"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny.build(tiny.model_config(*overrides, meta_architecture="FrozenDetectorRCNN"))
