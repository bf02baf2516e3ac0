"""Box supervision, RoIs of the mask branch, hourglass trunks and embedding dropout on this backend."""

import pytest
import torch

from maskx_d2.backends.torchvision.mask_rois import MaskRois, average_to_cells
from maskx_d2.method.box_supervision import box_coverage, known_background_loss, projection_loss

from . import tiny

ALL_LOSSES = {"projection": 0.3, "known_background": 0.5, "pairwise": 0.2}
NAMES = {"loss_mask_projection", "loss_mask_known_background", "loss_mask_pairwise"}


def build(frozen=False, **options):
    model = tiny.build(**options)
    if frozen:
        model.freeze_detector()
    return model


def mixed_targets(value=None):
    return [tiny.target([1, 4, 2], [True, False, True], value), tiny.target([3], [False], value)]


@pytest.mark.parametrize("frozen", [False, True])
def test_its_losses_stand_beside_the_others_under_names_of_their_own(frozen):
    without = tiny.losses(build(frozen), mixed_targets())
    found = tiny.losses(build(frozen, box_supervision=ALL_LOSSES), mixed_targets())
    assert set(found) == set(without) | NAMES
    assert all(found[name] > 0 for name in NAMES)


def test_the_other_losses_are_those_without_it():
    found = tiny.losses(build(box_supervision=ALL_LOSSES), mixed_targets())
    for name, value in tiny.losses(build(), mixed_targets()).items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=0)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("rois", ["proposals", "both"])
def test_masks_of_instances_without_a_mask_are_never_looked_at(frozen, rois):
    outcomes = []
    for value in (0, 1, None):
        model = build(frozen, box_supervision=ALL_LOSSES, train_rois=rois)
        losses = tiny.losses(model, mixed_targets(value))
        outcomes.append((losses, tiny.gradients(model, sum(losses.values()))))
    (losses, gradients), *others = outcomes
    assert all(losses[name] > 0 for name in NAMES)
    for other_losses, other_gradients in others:
        assert other_losses == losses
        assert all(torch.equal(other_gradients[name], g) for name, g in gradients.items())


def test_losses_are_those_of_the_method_on_the_boxes_and_masks_of_the_image():
    model = build(box_supervision={"projection": 0.3, "known_background": 0.5})
    heads = model.roi_heads
    target = tiny.target([1, 4], [True, False])
    roi = target["boxes"][1] + torch.tensor([-4.0, -3.0, 5.0, 2.0])
    logits = torch.randn(1, 28, 28, generator=torch.Generator().manual_seed(0))
    rois = MaskRois(target, target["has_mask"], roi[None], torch.tensor([1]))
    found = heads._box_supervision_losses(logits, [rois])
    rows, columns = box_coverage(roi[None], target["boxes"][1:], 28)
    covered = average_to_cells(target["masks"][0][None].float(), roi[None], 28)[0, 0] >= 0.5
    outside = rows[0][:, None] * columns[0][None, :] < 0.5
    assert covered.any() and outside.any()
    expected = {
        "loss_mask_projection": 0.3 * projection_loss(logits, rows, columns),
        "loss_mask_known_background": 0.5 * known_background_loss(logits, (covered | outside)[None]),
    }
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    "targets",
    [
        [([1, 2], [True, True]), ([3], [True])],  # none of B
        [([1, 2], [False, False]), ([3], [False])],  # none of A
        [([], []), ([], [])],  # neither
        [([], []), ([1, 2], [True, False])],
    ],
)
def test_batches_without_a_or_b_train_with_gradients_for_every_mask_parameter(frozen, targets):
    model = build(frozen, box_supervision=ALL_LOSSES)
    losses = tiny.losses(model, [tiny.target(*of_image) for of_image in targets])
    present = {flag for _, has_mask in targets for flag in has_mask}
    assert (losses["loss_mask"] > 0) == (True in present)
    assert all((losses[name] > 0) == (False in present) for name in NAMES)
    gradients = tiny.gradients(model, sum(losses.values()))
    for name, gradient in gradients.items():
        if name.startswith("roi_heads.mask_"):
            assert gradient is not None and torch.isfinite(gradient).all(), name


def test_targets_without_masks_are_boxes_only():
    target = {key: tiny.target([2])[key] for key in ("boxes", "labels")}
    losses = tiny.losses(build(box_supervision=ALL_LOSSES), [target])
    assert losses["loss_mask"] == 0 and all(losses[name] > 0 for name in NAMES)


def test_the_pairwise_loss_sees_the_image_as_it_was_given():
    """Not as it is normalised: two settings of the normalisation give one image."""
    model = build(box_supervision={"pairwise": 1.0}, image_mean=[0.2, 0.3, 0.4], image_std=[0.5, 0.6, 0.7])
    seen = []
    supervision = model.roi_heads.mask_box_supervision
    supervision.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((kwargs["rois"], kwargs["colours"])), with_kwargs=True
    )
    (image,) = tiny.images(1)
    tiny.losses(model, [tiny.target([2], [False])], inputs=[image])
    ((rois, colours),) = seen
    torch.testing.assert_close(colours, average_to_cells(image, rois, 28), rtol=0, atol=1e-5)


def test_it_counts_steps_in_the_checkpoint():
    model = build(box_supervision={**ALL_LOSSES, "start": 1, "warmup": 2})
    for _ in range(3):
        tiny.losses(model, mixed_targets())
    assert model.state_dict()["roi_heads.mask_box_supervision.steps"] == 3
    model.eval()(tiny.images(1))
    assert model.state_dict()["roi_heads.mask_box_supervision.steps"] == 3


# ---- RoIs ----


def rois_of(model, *targets, seed=0):
    """The RoIs of each image that reach the mask branch."""
    seen = []
    handle = model.roi_heads.mask_roi_pool.register_forward_pre_hook(lambda _, args: seen.extend(args[1]))
    tiny.losses(model, list(targets), seed)
    handle.remove()
    return seen


@pytest.mark.parametrize("frozen", [False, True])
def test_ground_truth_rois_are_the_boxes_of_instances_with_masks(frozen):
    target = tiny.target([1, 4, 2], [True, False, True])
    rois = rois_of(build(frozen, train_rois="ground_truth"), target, tiny.target([], []))
    assert torch.equal(rois[0], target["boxes"][[0, 2]]) and len(rois[1]) == 0


@pytest.mark.parametrize("frozen", [False, True])
def test_both_are_the_sampled_rois_and_behind_them_the_boxes(frozen):
    target = tiny.target([1, 4, 2], [True, False, True])
    (sampled,) = rois_of(build(frozen), target)
    (both,) = rois_of(build(frozen, train_rois="both"), target)
    assert torch.equal(both, torch.cat([sampled, target["boxes"][[0, 2]]]))


@pytest.mark.parametrize("rois", ["proposals", "ground_truth", "both"])
def test_no_more_rois_of_an_image_than_the_limit_and_others_each_step(rois):
    model = build(train_rois=rois, rois_per_image=2)
    drawn = set()
    for seed in range(5):
        first, second = rois_of(model, tiny.target([1, 2, 3]), tiny.target([4]), seed=seed)
        assert len(first) == 2 and 1 <= len(second) <= 2
        drawn.add(str(first.tolist()))
    assert len(drawn) > 1


# ---- Trunks and dropout ----


@pytest.mark.parametrize("predictor", ["transfer", "agnostic", "class_specific"])
def test_an_hourglass_trains_and_infers_with_every_predictor(predictor):
    model = build(trunk="hourglass_20", hourglass_channels=32, predictor=predictor)
    losses = tiny.losses(model, mixed_targets())
    gradients = tiny.gradients(model, losses["loss_mask"])
    for name, gradient in gradients.items():
        if name.startswith("roi_heads.mask_head"):
            assert gradient.abs().sum() > 0, name
    features = torch.randn(2, 16, 32, 32)
    heads = model.eval().roi_heads
    with torch.no_grad():
        masks = heads.mask_predictor(heads.mask_head(features), torch.tensor([0, 1]))
    assert masks.shape == (2, 64, 64)


def test_dropout_is_drawn_in_training_and_leaves_inference_alone():
    plain, dropping = build(), build(embedding_dropout=0.5)
    assert dropping.state_dict().keys() == plain.state_dict().keys()
    losses = [tiny.losses(dropping, mixed_targets(), seed)["loss_mask"] for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    with torch.no_grad():
        found, expected = (model.eval()(tiny.images(1))[0] for model in (dropping, plain))
    assert torch.equal(found["masks"], expected["masks"])


# ---- Errors ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"box_supervision": {"projektion": 1}}, "box_supervision is .*projektion"),
        ({"box_supervision": {"start": 3}}, "expected a weight above 0 or None"),
        ({"box_supervision": {"pairwise": -1}}, "pairwise of the box supervision is -1"),
        (
            {"box_supervision": {"projection": 1}, "train_rois": "ground_truth"},
            "train_rois is 'ground_truth', expected 'proposals' or 'both'",
        ),
        ({"train_rois": "boxes"}, "train_rois is 'boxes', expected one of"),
        ({"rois_per_image": -1}, "rois_per_image is -1, expected 0 or more"),
        ({"embedding_dropout": 1.0}, "embedding_dropout is 1.0, expected"),
        ({"trunk": "resnet"}, "trunk is 'resnet', expected one of 'convs', 'hourglass_20'"),
        ({"trunk": "hourglass_20", "trunk_norm": ""}, "trunk_norm is '', expected one of 'BN', 'GN'"),
        ({"returned_layers": [1, 2]}, "anchor_sizes has 5 entries, expected one for each of the 3 FPN"),
    ],
)
def test_options_that_do_not_fit_are_errors_that_name_them(options, message):
    with pytest.raises(ValueError, match=message):
        tiny.build(**options)
