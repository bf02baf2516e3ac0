"""Box supervision, RoIs of the mask head, hourglass trunks and embedding dropout on this backend."""

import copy

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.modeling import build_backbone
from detectron2.structures import BitMasks, Keypoints, PolygonMasks
from detectron2.utils.events import EventStorage

from maskx_d2.backends.detectron2 import PartiallySupervisedROIHeads
from maskx_d2.backends.detectron2.config import load_config
from maskx_d2.backends.detectron2.labelled_classes import LabelledClasses
from maskx_d2.backends.detectron2.roi_crops import ToRGB, average_to_cells, covered_cells
from maskx_d2.backends.detectron2.trainer import scale_to
from maskx_d2.method.box_supervision import box_coverage, known_background_loss, projection_loss
from maskx_d2.runtime.configs import config_file

from . import tiny

BOX = "MODEL.ROI_MASK_HEAD.BOX_SUPERVISION"
ALL_LOSSES = [f"{BOX}.PROJECTION", 0.3, f"{BOX}.KNOWN_BACKGROUND", 0.5, f"{BOX}.PAIRWISE", 0.2]
NAMES = {"loss_mask_projection", "loss_mask_known_background", "loss_mask_pairwise"}
BOTH = ["GeneralizedRCNN", "FrozenDetectorRCNN"]


def build(*overrides, meta_architecture="GeneralizedRCNN", seed=0):
    cfg = tiny.model_config(*overrides, meta_architecture=meta_architecture)
    model = tiny.build(cfg, seed)
    model.load_state_dict(model.state_dict())  # a frozen detector wants its weights
    return model


def mixed_batch(mask_value=None):
    return tiny.batch(
        tiny.instances([0, 3, 1], [True, False, True], mask_value),
        tiny.instances([2], [False], mask_value),
    )


# ---- Box supervision ----


@pytest.mark.parametrize("meta_architecture", BOTH)
def test_its_losses_stand_beside_the_others_under_names_of_their_own(meta_architecture):
    without = tiny.losses(build(meta_architecture=meta_architecture), mixed_batch())
    found = tiny.losses(build(*ALL_LOSSES, meta_architecture=meta_architecture), mixed_batch())
    assert set(found) == set(without) | NAMES
    assert all(found[name] > 0 for name in NAMES)


def test_the_other_losses_are_those_without_it():
    """End to end the same RoIs are sampled; masks of A are as they were, to the last normalisation."""
    model = build(*ALL_LOSSES, "MODEL.ROI_MASK_HEAD.MLP_BRANCH.NUM_LAYERS", 0)
    plain = build("MODEL.ROI_MASK_HEAD.MLP_BRANCH.NUM_LAYERS", 0)
    plain.load_state_dict(model.state_dict(), strict=False)
    found, expected = tiny.losses(model, mixed_batch()), tiny.losses(plain, mixed_batch())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=0)


@pytest.mark.parametrize("meta_architecture", BOTH)
@pytest.mark.parametrize("rois", ["proposals", "both"])
def test_masks_of_instances_without_a_mask_are_never_looked_at(meta_architecture, rois):
    model = build(*ALL_LOSSES, "MODEL.ROI_MASK_HEAD.TRAIN_ROIS", rois, meta_architecture=meta_architecture)
    outcomes = []
    for value in (True, False):
        losses = tiny.losses(model, mixed_batch(value))
        outcomes.append((losses, tiny.gradients(model, sum(losses.values()))))
        model.roi_heads.mask_head.box_supervision.steps.zero_()
    (losses, gradients), (other_losses, other_gradients) = outcomes
    assert losses == other_losses and all(losses[name] > 0 for name in NAMES)
    for name, gradient in gradients.items():
        other = other_gradients[name]
        assert (gradient is None and other is None) or torch.equal(gradient, other), name


def test_masks_that_the_split_takes_away_are_not_looked_at_either():
    model = build(*ALL_LOSSES)
    model.roi_heads._get_class_has_mask = lambda: [True, True, False, False]
    outcomes = []
    for value in (True, False):
        objects = tiny.instances([0, 3, 1, 2], [True, False, True, False], value)
        objects.gt_has_mask[:] = True
        outcomes.append(tiny.losses(model, tiny.batch(objects)))
        model.roi_heads.mask_head.box_supervision.steps.zero_()
    assert outcomes[0] == outcomes[1] and all(outcomes[0][name] > 0 for name in NAMES)


def test_losses_are_those_of_the_method_on_the_boxes_and_masks_of_the_image():
    """The head is given RoIs; what it should make of them is put together here."""
    model = build(*ALL_LOSSES[:4]).train()
    objects = tiny.instances([0, 3], [True, False])
    head, heads = model.roi_heads.mask_head, model.roi_heads
    inputs = tiny.batch(objects)
    features = model.backbone(model.preprocess_image(inputs).tensor)
    proposals = tiny.instances([0, 3])
    proposals.remove("gt_masks")
    proposals.proposal_boxes = proposals.gt_boxes.clone()
    proposals.proposal_boxes.tensor += torch.tensor([-4.0, -3.0, 5.0, 2.0])
    proposals.objectness_logits = torch.zeros(2)
    proposals.remove("gt_boxes"), proposals.remove("gt_classes")
    with tiny.storage():
        heads.proposal_append_gt = False
        (rois,) = heads.label_and_sample_proposals([proposals], [objects])
        (rois,) = heads.select_mask_rois([rois])
        assert sorted(rois.gt_classes.tolist()) == [0, 3]
        pooled = heads.mask_pooler([features["p2"]], [rois.proposal_boxes])
        losses = head(pooled, [rois])
        logits = head.mask_logits(pooled, rois.gt_classes)
    (row,) = (rois.gt_classes == 3).nonzero().flatten().tolist()
    side = logits.shape[-1]
    roi, box = rois.proposal_boxes.tensor[row], rois.gt_boxes.tensor[row]
    rows, columns = box_coverage(roi[None], box[None], side)
    # Cell by cell: where the box is not, and where the disk of the first object is.
    other = objects.gt_masks.tensor[0].float()
    covered = average_to_cells(other[None], roi[None], side)[0, 0] >= 0.5
    outside = rows[0][:, None] * columns[0][None, :] < 0.5
    assert covered.any() and outside.any()
    expected = {
        "loss_mask_projection": 0.3 * projection_loss(logits[row : row + 1], rows, columns),
        "loss_mask_known_background": 0.5
        * known_background_loss(logits[row : row + 1], (covered | outside)[None]),
    }
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value)


@pytest.mark.parametrize("meta_architecture", BOTH)
@pytest.mark.parametrize(
    "per_image",
    [
        [([0, 1], [True, True]), ([2], [True])],  # none of B
        [([0, 1], [False, False]), ([2], [False])],  # none of A
        [([], []), ([], [])],  # neither
        [([], []), ([0, 1], [True, False])],
    ],
)
def test_batches_without_a_or_b_train_with_gradients_for_every_mask_parameter(meta_architecture, per_image):
    model = build(*ALL_LOSSES, meta_architecture=meta_architecture)
    inputs = tiny.batch(*(tiny.instances(classes, has_mask) for classes, has_mask in per_image))
    losses = tiny.losses(model, inputs)
    present = {flag for _, has_mask in per_image for flag in has_mask}
    assert (losses["loss_mask"] > 0) == (True in present)
    assert all((losses[name] > 0) == (False in present) for name in NAMES)
    gradients = tiny.gradients(model, sum(losses.values()))
    for name, parameter in model.roi_heads.mask_head.named_parameters():
        gradient = gradients[f"roi_heads.mask_head.{name}"]
        assert gradient is not None and torch.isfinite(gradient).all(), name
        assert parameter.requires_grad


def test_its_count_of_steps_is_in_the_checkpoint_once_and_the_names_of_parameters_stay():
    model, plain = build(*ALL_LOSSES), build()
    new = set(model.state_dict()) - set(plain.state_dict())
    assert new == {"roi_heads.mask_head.box_supervision.steps"}
    assert set(plain.state_dict()) <= set(model.state_dict())
    tiny.losses(model, mixed_batch())
    assert model.state_dict()["roi_heads.mask_head.box_supervision.steps"] == 1
    model.eval()(mixed_batch())
    assert model.state_dict()["roi_heads.mask_head.box_supervision.steps"] == 1


def test_it_trains_the_weight_transfer_on_classes_without_masks():
    model = build(*ALL_LOSSES)
    losses = tiny.losses(model, tiny.batch(tiny.instances([2, 3], [False, False])))
    gradients = tiny.gradients(model, sum(losses[name] for name in NAMES))
    assert gradients["roi_heads.mask_head.predictor.transfer.0.weight"].abs().sum() > 0
    assert gradients["roi_heads.box_predictor.cls_score.weight"] is None  # stop-grad holds


@pytest.mark.parametrize("predictor", ["agnostic", "class_specific"])
def test_it_works_with_every_predictor(predictor):
    model = build(*ALL_LOSSES, "MODEL.ROI_MASK_HEAD.MASKX_PREDICTOR", predictor)
    assert all(tiny.losses(model, mixed_batch())[name] > 0 for name in NAMES)


def test_polygons_and_bitmaps_give_the_same_losses():
    """Of boxes as masks, in which both have the same cells but for those on an edge."""
    model = build(*ALL_LOSSES)
    outcomes = []
    for as_polygons in (False, True):
        inputs = mixed_batch()
        for image in inputs:
            boxes = image["instances"].gt_boxes.tensor.round()
            polygons = [[np.array([x0, y0, x1, y0, x1, y1, x0, y1])] for x0, y0, x1, y1 in boxes.numpy()]
            masks = torch.zeros(len(boxes), tiny.SIDE, tiny.SIDE, dtype=torch.bool)
            for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
                mask[y0:y1, x0:x1] = True
            image["instances"].gt_masks = PolygonMasks(polygons) if as_polygons else BitMasks(masks)
        outcomes.append(tiny.losses(model, inputs))
        model.roi_heads.mask_head.box_supervision.steps.zero_()
    for name in NAMES:
        torch.testing.assert_close(outcomes[0][name], outcomes[1][name], rtol=0.03, atol=0)


def test_targets_of_the_stock_mapper_without_masks_are_boxes_only():
    objects = tiny.instances([1])
    objects.remove("gt_masks")
    losses = tiny.losses(build(*ALL_LOSSES), tiny.batch(objects))
    assert losses["loss_mask"] == 0 and losses["loss_mask_projection"] > 0


def test_it_works_beside_partial_labels_and_a_keypoint_head():
    keypoints = [
        *("MODEL.KEYPOINT_ON", True, "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", (8,)),
        *("MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", 2, "MODEL.ROI_MASK_HEAD.TRAIN_ROIS", "both"),
    ]
    objects = tiny.instances([0, 3], [True, False])
    points = torch.cat([objects.gt_boxes.get_centers(), torch.full((2, 1), 2.0)], 1)
    objects.gt_keypoints = Keypoints(points[:, None].expand(2, 2, 3).contiguous())
    objects.gt_labelled_classes = LabelledClasses(torch.tensor([True, False, False, True]), 2)
    losses = tiny.losses(build(*ALL_LOSSES, *keypoints), tiny.batch(objects))
    assert losses["loss_keypoint"] > 0
    assert losses["loss_mask_projection"] > 0 and losses["loss_mask_known_background"] > 0


def test_under_autocast_its_losses_are_close_to_those_in_single_precision():
    expected = tiny.losses(build(*ALL_LOSSES), mixed_batch())
    with torch.autocast("cpu", torch.bfloat16):
        found = tiny.losses(build(*ALL_LOSSES), mixed_batch())
    for name in NAMES:
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], expected[name], rtol=0.05, atol=0.01)


def test_64_rois_need_one_map_of_the_size_of_the_image_not_64():
    from tests.largest_tensor import LargestTensor

    side = 1024
    masks = BitMasks(torch.zeros(2, side, side, dtype=torch.bool))
    rois = torch.tensor([[10.0, 10.0, 400.0, 300.0]]).repeat(64, 1)
    with LargestTensor() as largest:
        covered_cells(masks, rois, 28)
    assert largest.numel <= 2 * side * side


# ---- What lies in the cells ----


def test_covered_cells_are_those_of_the_union_by_pycocotools():
    rng = np.random.default_rng(0)
    side = 96
    polygons = [[rng.uniform(0, side, 8)] for _ in range(3)]
    union = np.zeros((side, side), dtype=bool)
    for (polygon,) in polygons:
        union |= (
            mask_util.decode(mask_util.merge(mask_util.frPyObjects([polygon.tolist()], side, side))) > 0
        )
    rois = torch.tensor([[0.0, 0.0, 96.0, 96.0], [20.0, 8.0, 76.0, 64.0], [90.0, 90.0, 95.0, 95.0]])
    as_polygons = covered_cells(PolygonMasks(polygons), rois, 28)
    as_bits = covered_cells(BitMasks(torch.from_numpy(union)[None]), rois, 28)
    for n, (x0, y0, x1, y1) in enumerate(rois.int().tolist()):
        # An area average of the pixels in the RoI.
        crop = torch.from_numpy(union[y0:y1, x0:x1]).float()[None, None]
        expected = torch.nn.functional.interpolate(crop, (28, 28), mode="area")[0, 0] >= 0.5
        assert (as_bits[n] != expected).float().mean() < 0.04
        assert (as_polygons[n] != expected).float().mean() < 0.06
    assert as_bits[:2].any() and not as_bits[:2].all()


def test_no_masks_cover_no_cells():
    rois = torch.tensor([[0.0, 0.0, 9.0, 9.0]])
    for masks in (None, BitMasks(torch.zeros(0, 9, 9)), PolygonMasks([])):
        assert covered_cells(masks, rois, 28).shape == (1, 28, 28)
        assert not covered_cells(masks, rois, 28).any()
    assert covered_cells(BitMasks(torch.ones(1, 9, 9)), rois[:0], 28).shape == (0, 28, 28)


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_colours_are_those_of_the_image_before_it_was_normalised(image_format):
    rgb = torch.rand(3, 5, 7)
    mean, std = [103.5, 116.3, 123.7], [57.4, 57.1, 58.4]
    pixels = 255 * (rgb.flip(0) if image_format == "BGR" else rgb)
    normalised = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    to_rgb = ToRGB(pixel_mean=mean, pixel_std=std, image_format=image_format)
    torch.testing.assert_close(to_rgb(normalised), rgb, rtol=0, atol=1e-6)


# ---- RoIs of the mask head ----


def rois_of(model, *per_image, seed=0):
    """The RoIs that reach the mask head, and their classes, image by image."""
    seen = []
    handle = model.roi_heads.mask_head.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs[1]))
    tiny.losses(model, tiny.batch(*per_image), seed)
    handle.remove()
    return seen


@pytest.mark.parametrize("meta_architecture", BOTH)
def test_ground_truth_rois_are_the_boxes_of_instances_with_masks(meta_architecture):
    model = build("MODEL.ROI_MASK_HEAD.TRAIN_ROIS", "ground_truth", meta_architecture=meta_architecture)
    objects = tiny.instances([0, 3, 1], [True, False, True])
    first, second = rois_of(model, objects, tiny.instances([]))
    assert first.gt_classes.tolist() == [0, 1] and len(second) == 0
    assert torch.equal(first.proposal_boxes.tensor, objects.gt_boxes.tensor[[0, 2]])
    assert torch.equal(first.gt_masks.tensor, objects.gt_masks.tensor[[0, 2]])


@pytest.mark.parametrize("meta_architecture", BOTH)
def test_both_are_the_sampled_rois_and_behind_them_the_boxes(meta_architecture):
    objects = tiny.instances([0, 3, 1], [True, False, True])
    (sampled,) = rois_of(build(meta_architecture=meta_architecture), objects)
    model = build("MODEL.ROI_MASK_HEAD.TRAIN_ROIS", "both", meta_architecture=meta_architecture)
    (both,) = rois_of(model, objects)
    assert torch.equal(both.proposal_boxes.tensor[: len(sampled)], sampled.proposal_boxes.tensor)
    assert torch.equal(both.proposal_boxes.tensor[len(sampled) :], objects.gt_boxes.tensor[[0, 2]])


def test_with_box_supervision_boxes_without_masks_are_among_the_ground_truth_rois():
    overrides = [f"{BOX}.KNOWN_BACKGROUND", 0.3, "MODEL.ROI_MASK_HEAD.TRAIN_ROIS", "ground_truth"]
    objects = tiny.instances([0, 3, 1], [True, False, True])
    (rois,) = rois_of(build(*overrides), objects)
    assert rois.gt_classes.tolist() == [0, 3, 1]


@pytest.mark.parametrize("rois", ["proposals", "ground_truth", "both"])
def test_no_more_rois_of_an_image_than_the_limit_and_others_each_step(rois):
    model = build("MODEL.ROI_MASK_HEAD.TRAIN_ROIS", rois, "MODEL.ROI_MASK_HEAD.ROIS_PER_IMAGE", 2)
    objects = tiny.instances([0, 3, 1], [True, True, True])
    drawn = set()
    for seed in range(5):
        first, second = rois_of(model, objects, tiny.instances([2]), seed=seed)
        assert len(first) == 2 and 1 <= len(second) <= 2
        drawn.add(str(first.proposal_boxes.tensor.tolist()))
    assert len(drawn) > 1


# ---- Trunks ----


HOURGLASS = [
    *("MODEL.ROI_MASK_HEAD.TRUNK", "hourglass_20", "MODEL.ROI_MASK_HEAD.NORM", "GN"),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", 32, "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 32),
]


@pytest.mark.parametrize("predictor", ["transfer", "agnostic", "class_specific"])
def test_an_hourglass_trains_and_infers_masks_of_64_cells_with_every_predictor(predictor):
    model = build(*HOURGLASS, "MODEL.ROI_MASK_HEAD.MASKX_PREDICTOR", predictor)
    head = model.roi_heads.mask_head
    assert head.mask_logits(torch.randn(2, 16, 32, 32), torch.tensor([0, 1])).shape == (2, 64, 64)
    losses = tiny.losses(model, mixed_batch())
    gradients = tiny.gradients(model, losses["loss_mask"])
    for name, _ in head.named_parameters():
        assert gradients[f"roi_heads.mask_head.{name}"].abs().sum() > 0 or "predictor" in name, name
    with torch.no_grad():
        (found,) = model.eval()(tiny.batch(tiny.instances([0])))
    assert found["instances"].pred_masks.shape[1:] == (tiny.SIDE, tiny.SIDE)


def test_an_hourglass_trains_without_a_single_mask():
    losses = tiny.losses(build(*HOURGLASS), tiny.batch(tiny.instances([0], [False])))
    assert losses["loss_mask"] == 0


def test_rois_that_an_hourglass_cannot_halve_are_refused():
    with pytest.raises(ValueError, match="14 x 14 cells, expected a multiple of 4"):
        build(*HOURGLASS[:-2])


# ---- Embedding dropout ----


def test_dropout_is_drawn_in_training_and_leaves_inference_alone():
    plain, dropping = build(), build("MODEL.ROI_MASK_HEAD.TRANSFER.EMBEDDING_DROPOUT", 0.5)
    assert dropping.state_dict().keys() == plain.state_dict().keys()
    losses = [tiny.losses(dropping, mixed_batch(), seed)["loss_mask"] for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    assert losses[0] != tiny.losses(plain, mixed_batch(), 0)["loss_mask"]
    with torch.no_grad():
        found, expected = (model.eval()(mixed_batch()) for model in (dropping, plain))
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a["instances"].pred_masks, b["instances"].pred_masks)


# ---- Config ----


MAIN_CONFIG = str(config_file("maskx_R_50_FPN_1x.yaml"))
HEAD = "MODEL.ROI_MASK_HEAD"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([f"{HEAD}.TRANSFER.EMBEDDING_DROPOUT", 1.0], "DROPOUT is 1.0, expected 0 or more and less than 1"),
        ([f"{HEAD}.TRAIN_ROIS", "boxes"], "TRAIN_ROIS is 'boxes', expected one of 'proposals'"),
        ([f"{HEAD}.ROIS_PER_IMAGE", -1], "ROIS_PER_IMAGE is -1, expected 0 or more"),
        ([f"{HEAD}.TRUNK", "resnet"], "TRUNK is 'resnet', expected one of 'convs', 'hourglass_20'"),
        ([f"{HEAD}.TRUNK", "hourglass_52"], "NORM is '', expected a normalisation with"),
        ([f"{BOX}.PROJECTION", -0.1], "PROJECTION is -0.1, expected 0 or more"),
        ([f"{BOX}.START", -1], "START is -1, expected 0 or more"),
        (
            [f"{BOX}.PAIRWISE", 0.1, f"{HEAD}.TRAIN_ROIS", "ground_truth"],
            "TRAIN_ROIS is 'ground_truth', expected 'proposals' or 'both' with .*PAIRWISE",
        ),
        (
            [f"{BOX}.PROJECTION", 0.1, "MODEL.ROI_HEADS.NAME", "StandardROIHeads"],
            "PROJECTION is 0.1, but MODEL.ROI_HEADS.NAME is 'StandardROIHeads', expected 'Partially",
        ),
        (
            [f"{HEAD}.TRAIN_ROIS", "both", "MODEL.ROI_HEADS.NAME", "StandardROIHeads"],
            "TRAIN_ROIS is 'both', but MODEL.ROI_HEADS.NAME",
        ),
    ],
)
def test_keys_that_do_not_fit_are_errors_that_name_them(overrides, message):
    with pytest.raises(ValueError, match=message):
        load_config(MAIN_CONFIG, overrides)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_rois": "boxes"}, "train_rois is 'boxes'.*expected one of"),
        ({"rois_per_image": -1}, "rois_per_image -1, expected .* 0 or more"),
        ({"train_rois": "ground_truth"}, "train_rois is 'ground_truth', expected 'proposals' or 'both'"),
        ({"to_rgb": None}, "to_rgb is None, expected ToRGB for the pairwise loss"),
    ],
)
def test_explicit_arguments_are_checked_too(options, message):
    cfg = tiny.model_config(*ALL_LOSSES)
    shapes = build_backbone(cfg).output_shape()
    arguments = PartiallySupervisedROIHeads.from_config(cfg, shapes)
    with pytest.raises(ValueError, match=message):
        PartiallySupervisedROIHeads(**{**arguments, **options})


def test_colours_need_an_image_format_that_has_them():
    with pytest.raises(ValueError, match=r"INPUT.FORMAT is 'L', expected 'RGB' or 'BGR'"):
        build(*ALL_LOSSES, "INPUT.FORMAT", "L")


@pytest.mark.parametrize(("num_gpus", "expected"), [(8, (200, 100)), (2, (800, 400)), (16, (100, 50))])
def test_its_iterations_are_scaled_with_the_schedule(num_gpus, expected):
    cfg = load_config(MAIN_CONFIG, [f"{BOX}.START", 200, f"{BOX}.WARMUP", 100])
    cfg.freeze()
    before = copy.deepcopy(cfg)
    scaled = scale_to(cfg, num_gpus).MODEL.ROI_MASK_HEAD.BOX_SUPERVISION
    assert (scaled.START, scaled.WARMUP) == expected
    assert cfg == before and cfg.is_frozen()


def test_the_ramp_follows_the_iterations_of_the_run_and_not_those_of_its_weights():
    model = build(*ALL_LOSSES, "MODEL.ROI_MASK_HEAD.BOX_SUPERVISION.START", 3)
    supervision = model.roi_heads.mask_head.box_supervision
    supervision.set_steps(1000)  # as in the weights of a run that has ended
    model.train()
    for iteration, is_on in ((0, False), (2, False), (3, True), (0, False)):
        with EventStorage(iteration):
            losses = model(mixed_batch())
        assert all((losses[name] > 0) == is_on for name in NAMES)
