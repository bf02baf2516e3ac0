import pytest
import torch
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import maskrcnn_loss
from waits import Waits

from . import tiny

HEAD = "roi_heads.mask_"


def mask_parameters(model):
    return {n: p for n, p in model.named_parameters() if n.startswith(HEAD)}


# ---- What may be seen ----


@pytest.mark.parametrize("frozen", [False, True])
def test_masks_that_has_mask_denies_are_not_seen(frozen):
    """Losses and gradients are the same bit for bit, whatever the masks of boxes-only instances hold."""
    outcomes = []
    for value in (0, 1, None):
        model = tiny.build()
        if frozen:
            model.freeze_detector()
        targets = [
            tiny.target([1, 2, 3], [True, False, True], value),
            tiny.target([4, 1], [False, True], value),
        ]
        losses = tiny.losses(model, targets)
        outcomes.append((losses, tiny.gradients(model, sum(losses.values()))))
    (losses, gradients), *others = outcomes
    assert losses["loss_mask"] > 0
    for other_losses, other_gradients in others:
        assert other_losses == losses
        assert all(torch.equal(other_gradients[name], g) for name, g in gradients.items())


def test_masks_that_has_mask_allows_are_seen():
    losses = [
        tiny.losses(tiny.build(), [tiny.target([1, 2], [True, present], 1)])["loss_mask"]
        for present in (True, False)
    ]
    assert losses[0] != losses[1]


def test_boxes_without_masks_still_train_the_box_branch():
    """Box and RPN losses do not depend on which instances have masks."""
    every, some = (
        tiny.losses(tiny.build(), [tiny.target([1, 2, 3], has_mask)])
        for has_mask in ([True, True, True], [True, False, False])
    )
    for name in set(every) - {"loss_mask"}:
        assert every[name] == some[name] > 0


def test_without_has_mask_all_masks_count_and_without_masks_none():
    plain, said = tiny.target([1, 2]), tiny.target([1, 2], [True, True])
    assert tiny.losses(tiny.build(), [plain]) == tiny.losses(tiny.build(), [said])
    boxes_only = {key: plain[key] for key in ("boxes", "labels")}
    said = tiny.target([1, 2], [False, False])
    assert tiny.losses(tiny.build(), [boxes_only]) == tiny.losses(tiny.build(), [said])


@pytest.mark.parametrize("predictor", ["transfer", "agnostic", "class_specific"])
@pytest.mark.parametrize("second", [tiny.target([3], [False]), tiny.target([], [])])
def test_a_batch_without_any_mask_gives_every_mask_parameter_a_zero_gradient(predictor, second):
    model = tiny.build(predictor=predictor)
    losses = tiny.losses(model, [tiny.target([1, 2], [False, False]), second])
    assert losses["loss_mask"].item() == 0
    gradients = tiny.gradients(model, sum(losses.values()))
    for name in mask_parameters(model):
        assert gradients[name] is not None and gradients[name].abs().sum() == 0, name
    assert all(gradient is not None for gradient in gradients.values())


@pytest.mark.parametrize("stop_grad", [True, False])
def test_stop_grad_keeps_the_mask_loss_off_the_box_predictor(stop_grad):
    model = tiny.build(stop_grad=stop_grad)
    gradients = tiny.gradients(model, tiny.losses(model, [tiny.target([1, 2])])["loss_mask"])
    for layer in ("cls_score", "bbox_pred"):
        gradient = gradients[f"roi_heads.box_predictor.{layer}.weight"]
        assert (gradient is None) if stop_grad else (gradient.abs().sum() > 0)
    transfer = [gradients[name] for name in mask_parameters(model) if "transfer" in name]
    assert transfer and all(gradient.abs().sum() > 0 for gradient in transfer)


# ---- The loss ----


def test_mask_loss_is_torchvisions_over_the_rois_that_have_a_mask(monkeypatch):
    """Against torchvision's own function on the logits of all classes, for the RoIs that it may see."""
    model = tiny.build(predictor="class_specific", mlp_layers=0)
    heads = model.roi_heads
    targets = [tiny.target([1, 2, 3], [True, False, True]), tiny.target([4, 1], [False, True])]
    seen = {}
    sample = heads.select_training_samples

    def select_training_samples(proposals, targets):
        seen["samples"] = sample(proposals, targets)
        return seen["samples"]

    monkeypatch.setattr(heads, "select_training_samples", select_training_samples)
    heads.mask_roi_pool.register_forward_pre_hook(lambda _, inputs: seen.update(inputs=inputs))
    loss = tiny.losses(model, targets)["loss_mask"]

    features, _, shapes = seen["inputs"]
    kept_boxes, kept_matches = [], []
    for boxes, matched, labels, target in zip(*seen["samples"][:3], targets, strict=True):
        rows = [i for i in range(len(labels)) if labels[i] > 0 and target["has_mask"][matched[i]]]
        kept_boxes.append(boxes[rows])
        kept_matches.append(matched[rows])
    assert 0 < sum(map(len, kept_boxes)) < sum(int((labels > 0).sum()) for labels in seen["samples"][2])
    upsampled = heads.mask_predictor.conv5_mask(
        heads.mask_head(heads.mask_roi_pool(features, kept_boxes, shapes))
    )
    predictor = heads.mask_predictor.mask_fcn_logits
    logits = torch.nn.functional.conv2d(upsampled.relu(), predictor.weight, predictor.bias)
    expected = maskrcnn_loss(
        logits,
        kept_boxes,
        [target["masks"] for target in targets],
        [target["labels"] - 1 for target in targets],
        kept_matches,
    )
    torch.testing.assert_close(loss, expected)


# ---- Stage-wise training ----


def test_stage_wise_training_leaves_the_detector_as_it_was_bit_for_bit():
    model = tiny.build(norm="BN")
    model.freeze_detector()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1, weight_decay=0.1)
    for seed in range(3):
        losses = tiny.losses(model, [tiny.target([1, 2], [True, False]), tiny.target([3])], seed)
        assert set(losses) == {"loss_mask"}
        optimizer.zero_grad()
        losses["loss_mask"].backward()
        optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == set(mask_parameters(model))


def test_stage_wise_training_samples_positive_rois_of_instances_with_masks_alone(monkeypatch):
    model = tiny.build()
    model.freeze_detector()
    seen = []
    model.roi_heads.mask_predictor.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    tiny.losses(model, [tiny.target([1, 2], [True, False]), tiny.target([4], [False])])
    assert set(seen[0].tolist()) == {0}
    losses = tiny.losses(model, [tiny.target([2], [False])])
    assert losses["loss_mask"].item() == 0 and len(seen[1]) == 0


def test_a_box_predictor_in_eval_mode_has_its_losses_all_the_same():
    model = tiny.build()
    targets = [tiny.target([1, 2], [True, False])]
    expected = tiny.losses(model, targets)
    train = model.train
    model.train = lambda: train() and model.roi_heads.box_predictor.eval()
    found = tiny.losses(model, targets)
    assert not model.roi_heads.box_predictor.training and found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_frozen_detector_stays_in_eval_mode():
    model = tiny.build()
    model.freeze_detector()
    assert not any(part.training for part in model._detector_parts())
    model.eval()
    model.train()
    assert not any(part.training for part in model._detector_parts())
    assert model.roi_heads.mask_predictor.training and model.transform.training


# ---- Inference ----


def test_inference_gives_each_detection_the_mask_of_its_class():
    model = tiny.build(box_score_thresh=0.0).eval()
    with torch.no_grad():
        (found,) = model(tiny.images(1))
    assert len(found["labels"].unique()) > 1
    assert found["masks"].shape == (len(found["labels"]), 1, tiny.SIDE, tiny.SIDE)
    assert 0 <= found["masks"].min() and found["masks"].max() <= 1


def test_an_image_in_which_nothing_is_found_has_no_masks():
    model = tiny.build(box_score_thresh=1.1).eval()
    with torch.no_grad():
        found = model(tiny.images(2))
    for of_image in found:
        assert of_image["boxes"].shape == (0, 4)
        assert of_image["masks"].shape == (0, 1, tiny.SIDE, tiny.SIDE)


def test_forward_under_autocast_is_close_to_float32():
    model = tiny.build()
    expected = tiny.losses(model, [tiny.target([1, 2])])["loss_mask"]
    with torch.autocast("cpu", torch.bfloat16):
        loss = tiny.losses(model, [tiny.target([1, 2])])["loss_mask"]
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0.02, atol=0)


# ---- Errors ----


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"has_mask": torch.tensor([True])},
            r"torch.bool of shape \(1,\), expected torch.bool of shape \(2,\)",
        ),
        ({"has_mask": torch.tensor([1, 0])}, r"has_mask of a target is torch.int64"),
        ({"masks": torch.zeros(3, 64, 64)}, r"a target has 3 masks, expected one for each of its 2 boxes"),
        ({"masks": None}, r"a target has has_mask, but no masks"),
    ],
)
def test_errors_of_targets_say_what_was_found_and_expected(change, message):
    target = {**tiny.target([1, 2], [True, False]), **change}
    target = {key: value for key, value in target.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        tiny.losses(tiny.build(), [target])


def test_training_without_targets_is_an_error():
    heads = tiny.build().train().roi_heads
    with pytest.raises(ValueError, match="targets is None, expected a target for each image"):
        heads({}, [], [])


def test_a_step_waits_for_a_gpu_no_more_often_than_one_of_torchvisions_mask_rcnn():
    ours = tiny.build()
    parts = ("box_head", "box_predictor", "box_roi_pool", "mask_roi_pool")
    stock = MaskRCNN(
        ours.backbone,
        min_size=tiny.SIDE,
        max_size=tiny.SIDE,
        rpn_anchor_generator=ours.rpn.anchor_generator,
        rpn_head=ours.rpn.head,
        **{part: getattr(ours.roi_heads, part) for part in parts},
        mask_head=MaskRCNNHeads(16, (8, 8), 1),
        mask_predictor=MaskRCNNPredictor(8, 8, tiny.NUM_CLASSES + 1),
    )

    def waits(model, has_mask=True):
        targets = [tiny.target([1, 3, 2], [True, has_mask, True]), tiny.target([2, 2], [has_mask, True])]
        with Waits() as counter:
            sum(tiny.losses(model, targets).values()).backward()
        return counter

    expected = waits(stock)
    assert expected.counts["nonzero"] > 0
    for has_mask in (True, False):
        found = waits(ours, has_mask)
        assert found.total <= expected.total, (found.counts, expected.counts)
