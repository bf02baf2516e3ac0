import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances

from maskx_d2.backends.detectron2 import box_predictor
from maskx_d2.backends.detectron2.box_predictor import (
    GatheredFastRCNNOutputLayers,
    PartiallyLabelledFastRCNNOutputLayers,
)
from maskx_d2.backends.detectron2.labelled_classes import LabelledClasses
from maskx_d2.backends.detectron2.partial_supervision import _for_partial_labels

from ...largest_tensor import LargestTensor
from . import tiny

WIDTH = 32


def predictors(num_classes, **options):
    """Detectron2's and ours, with the same weights, that detect several classes."""
    arguments = {
        "input_shape": ShapeSpec(channels=WIDTH),
        "box2box_transform": Box2BoxTransform(weights=(10, 10, 5, 5)),
        "num_classes": num_classes,
        "test_score_thresh": 0.05,
        "test_topk_per_image": 30,
        **options,
    }
    stock, ours = FastRCNNOutputLayers(**arguments), GatheredFastRCNNOutputLayers(**arguments)
    for layer in (stock.cls_score, stock.bbox_pred):
        torch.nn.init.normal_(layer.weight, std=0.5)
        torch.nn.init.normal_(layer.bias, std=0.1)
    ours.load_state_dict(stock.state_dict())
    return stock.eval(), ours.eval()


def proposals(*counts):
    generator = torch.Generator().manual_seed(3)
    result = []
    for count in counts:
        corner = 200 * torch.rand(count, 2, generator=generator)
        size = 5 + 90 * torch.rand(count, 2, generator=generator)
        instances = Instances((256, 240))
        instances.proposal_boxes = Boxes(torch.cat([corner, corner + size], 1))
        result.append(instances)
    return result


def detect(predictor, features, given):
    with torch.no_grad():
        return predictor.inference(predictor(features), given)


def assert_same(found, expected, **tolerance):
    assert sum(map(len, expected[0])) > 0
    for mine, theirs, my_rows, their_rows in zip(
        *found[:1], *expected[:1], found[1], expected[1], strict=True
    ):
        assert torch.equal(my_rows, their_rows)
        assert torch.equal(mine.pred_classes, theirs.pred_classes)
        assert torch.equal(mine.scores, theirs.scores)
        torch.testing.assert_close(mine.pred_boxes.tensor, theirs.pred_boxes.tensor, **tolerance)
        assert mine.image_size == theirs.image_size


@pytest.fixture(params=["gathered", "all boxes"])
def way(request, monkeypatch):
    """Either way to compute boxes, whatever the number of pairs."""
    monkeypatch.setattr(box_predictor, "_MOST_GATHERED", 1 if request.param == "gathered" else 0)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("num_classes", [1, 5, 300])
@pytest.mark.parametrize("options", [{}, {"cls_agnostic_bbox_reg": True}, {"test_topk_per_image": -1}])
def test_detections_are_those_of_detectron2(num_classes, options):
    stock, ours = predictors(num_classes, **options)
    given, features = proposals(60, 0, 25), torch.randn(85, WIDTH)
    assert_same(detect(ours, features, given), detect(stock, features, given), rtol=1e-5, atol=1e-3)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("class_agnostic", [True, False])
def test_boxes_of_pairs_are_those_of_all_classes_in_float64(class_agnostic):
    stock, ours = (p.double() for p in predictors(7, cls_agnostic_bbox_reg=class_agnostic))
    (given,) = proposals(20)
    boxes, features = given.proposal_boxes.tensor.double(), torch.randn(20, WIDTH, dtype=torch.float64)
    given.proposal_boxes = Boxes(torch.zeros(20, 4))
    given.proposal_boxes.tensor = boxes
    rows, classes = torch.randint(20, (50,)), torch.randint(7, (50,))
    with torch.no_grad():
        (of_all,) = stock.predict_boxes(stock(features), [given])
        found = ours._boxes(features, boxes, rows, classes)
    expected = of_all[rows] if class_agnostic else of_all.unflatten(1, (7, 4))[rows, classes]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-9)


def test_pairs_are_taken_in_parts_with_the_same_result(monkeypatch):
    stock, ours = predictors(20)
    monkeypatch.setattr(box_predictor, "_PAIRS_AT_ONCE", 7)
    monkeypatch.setattr(box_predictor, "_MOST_GATHERED", 1)
    given, features = proposals(50), torch.randn(50, WIDTH)
    assert_same(detect(ours, features, given), detect(stock, features, given), rtol=1e-5, atol=1e-3)


def test_the_number_of_pairs_decides_whether_boxes_are_gathered():
    _, ours = predictors(20, test_score_thresh=0.0)
    given, features = proposals(64), torch.randn(64, WIDTH)
    for num_pairs, is_gathered in ((20, True), (21, False)):
        rows, classes = torch.arange(num_pairs), torch.arange(num_pairs) % 20
        with LargestTensor() as tensor, torch.no_grad():
            ours._boxes(features, given[0].proposal_boxes.tensor, rows, classes)
        # The weights of 20 pairs, or the deltas of all.
        assert (tensor.numel == 20 * 4 * WIDTH) is is_gathered
        assert (tensor.numel == 64 * 4 * 20) is not is_gathered


@pytest.mark.parametrize("layer", ["cls_score", "bbox_pred"])
def test_a_model_that_has_diverged_detects_nothing(layer):
    stock, ours = predictors(5)
    for predictor in (stock, ours):
        getattr(predictor, layer).bias.data.fill_(float("nan"))
        ((found,), (rows,)) = detect(predictor, torch.randn(9, WIDTH), proposals(9))
        assert len(found) == len(rows) == 0


def test_a_proposal_whose_features_are_not_finite_is_left_out():
    stock, ours = predictors(5)
    features, given = torch.randn(30, WIDTH), proposals(30)
    features[3] = float("inf")
    (found,), (rows,) = detect(ours, features, given)
    (expected,), _ = detect(stock, features, given)
    assert torch.equal(found.pred_classes, expected.pred_classes) and len(found) > 0
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=1e-5, atol=1e-3)
    assert 3 not in rows


def test_where_nothing_is_above_the_threshold_nothing_is_detected():
    _, ours = predictors(5, test_score_thresh=1.1)
    (found,), (rows,) = detect(ours, torch.randn(9, WIDTH), proposals(9))
    assert len(found) == len(rows) == 0 and found.pred_boxes.tensor.shape == (0, 4)


def test_in_training_and_for_all_boxes_it_is_detectron2s():
    stock, ours = predictors(5)
    features, given = torch.randn(12, WIDTH), proposals(12)
    with torch.no_grad():
        (expected,) = stock.predict_boxes(stock(features), given)
        (found,) = ours.predict_boxes(ours(features), given)
        torch.testing.assert_close(found, expected)
        stock.train()
        ours.train()
        for mine, theirs in zip(ours(features), stock(features), strict=True):
            assert torch.equal(mine, theirs)
        (found,) = ours.predict_boxes(ours(features), given)
        torch.testing.assert_close(found, expected)


def test_regression_outputs_of_all_classes_are_never_computed():
    stock, ours = predictors(400, test_score_thresh=0.3)
    given, features = proposals(100), torch.randn(100, WIDTH)
    largest = {}
    for name, predictor in (("stock", stock), ("ours", ours)):
        with LargestTensor() as tensor:
            detect(predictor, features, given)
        largest[name] = tensor.numel
    assert largest["stock"] >= 100 * 4 * 400
    # What is left are the class scores, and the weights themselves.
    assert largest["ours"] <= max(100 * 401, 4 * 400 * WIDTH)


def test_a_config_key_puts_it_into_the_roi_heads():
    stock = tiny.build(tiny.model_config()).eval()
    ours = tiny.build(tiny.model_config("MODEL.ROI_BOX_HEAD.GATHERED_REGRESSION", True)).eval()
    assert isinstance(ours.roi_heads.box_predictor, GatheredFastRCNNOutputLayers)
    assert type(stock.roi_heads.box_predictor) is PartiallyLabelledFastRCNNOutputLayers
    # The same checkpoints, the same model.
    ours.load_state_dict(stock.state_dict())
    for model in (stock, ours):
        model.roi_heads.box_predictor.test_score_thresh = 0.0
    inputs = tiny.batch(tiny.instances([0]), tiny.instances([1, 2]))
    with torch.no_grad():
        pairs = zip(ours(inputs), stock(inputs), strict=True)
    for found, expected in pairs:
        found, expected = found["instances"], expected["instances"]
        assert len(expected) > 0 and torch.equal(found.pred_classes, expected.pred_classes)
        torch.testing.assert_close(
            found.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=1e-4, atol=1e-3
        )
        assert torch.equal(found.scores, expected.scores)


# ---- Images that are labelled in part ----


def training_proposals(num_classes, labelled, counts=(6, 4)):
    """RoIs of two images: of the first those classes are labelled, of the second all."""
    generator = torch.Generator().manual_seed(5)
    given = proposals(*counts)
    for instances, classes in zip(given, (labelled, range(num_classes)), strict=True):
        choices = torch.tensor([*classes, num_classes])
        picked = torch.randint(len(choices), (len(instances),), generator=generator)
        instances.gt_classes = choices[picked]
        instances.gt_boxes = Boxes(instances.proposal_boxes.tensor + 3)
    is_labelled = torch.zeros(num_classes, dtype=torch.bool)
    is_labelled[list(labelled)] = True
    given[0].gt_labelled_classes = LabelledClasses(is_labelled, len(given[0]))
    return given


def training_losses(predictor, scores, deltas, given):
    predictor.train()
    with tiny.storage():
        return predictor.losses((scores, deltas), given)


def test_the_loss_is_cross_entropy_over_the_labelled_classes_and_the_background():
    num_classes, labelled = 7, [1, 4]
    _, ours = predictors(num_classes)
    given = training_proposals(num_classes, labelled)
    scores = torch.randn(10, num_classes + 1, dtype=torch.float64, requires_grad=True)
    deltas = torch.randn(10, 4 * num_classes, dtype=torch.float64)
    found = training_losses(ours, scores, deltas, given)["loss_cls"]
    terms = []
    for i, target in enumerate(torch.cat([g.gt_classes for g in given]).tolist()):
        columns = [*labelled, num_classes] if i < 6 else list(range(num_classes + 1))
        terms.append(scores[i, columns].exp().sum().log() - scores[i, target])
    expected = sum(terms) / 10
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(found, scores, retain_graph=True)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, scores)[0])
    left_out = [c for c in range(num_classes) if c not in labelled]
    assert (gradient[:6, left_out] == 0).all() and (gradient[6:] != 0).all()


def test_with_sigmoid_cross_entropy_too_unlabelled_classes_have_no_gradient():
    _, ours = predictors(5, use_sigmoid_ce=True)
    given = training_proposals(5, [0, 2])
    scores = torch.randn(10, 6, requires_grad=True)
    loss = training_losses(ours, scores, torch.randn(10, 20), given)["loss_cls"]
    (gradient,) = torch.autograd.grad(loss, scores)
    assert loss.isfinite() and gradient.isfinite().all()
    assert (gradient[:6, [1, 3, 4]] == 0).all() and (gradient[6:, :5] != 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision_the_loss_stays_finite(dtype):
    _, ours = predictors(5)
    scores = torch.randn(10, 6).to(dtype).requires_grad_()
    loss = training_losses(ours, scores, torch.randn(10, 20), training_proposals(5, [3]))["loss_cls"]
    loss.backward()
    assert loss.isfinite() and scores.grad.isfinite().all()


def test_where_all_is_labelled_losses_are_detectron2s_bit_for_bit():
    stock, ours = predictors(5)
    given = training_proposals(5, range(5))
    del given[0]._fields["gt_labelled_classes"]
    scores, deltas = torch.randn(10, 6), torch.randn(10, 20)
    expected = training_losses(stock, scores, deltas, given)
    assert training_losses(ours, scores, deltas, given) == expected
    given = training_proposals(5, range(5))
    assert training_losses(ours, scores, deltas, given) == expected


def test_a_model_starts_from_detectron2s_weights_and_random_numbers():
    cfg = tiny.model_config("MODEL.MASK_ON", False)
    ours = tiny.build(cfg, seed=3)
    drawn = torch.rand(3)
    cfg.defrost()
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    stock = tiny.build(cfg, seed=3)
    assert torch.equal(torch.rand(3), drawn)
    for (name, mine), theirs in zip(ours.named_parameters(), stock.parameters(), strict=True):
        assert torch.equal(mine, theirs), name


@pytest.mark.parametrize("num_instances", [0, 2])
def test_labelled_classes_reach_the_loss_of_images_with_and_without_instances(num_instances):
    """In an image that labels class 1 alone the scores of the other classes get no gradient."""
    model = tiny.build(tiny.model_config("MODEL.MASK_ON", False))
    targets = tiny.instances([1] * num_instances)
    targets.remove("gt_masks")
    is_labelled = torch.tensor([False, True, False, False])
    targets.gt_labelled_classes = LabelledClasses(is_labelled, num_instances)
    losses = tiny.losses(model, tiny.batch(targets))
    gradient = tiny.gradients(model, losses["loss_cls"])["roi_heads.box_predictor.cls_score.weight"]
    assert (gradient[[0, 2, 3]] == 0).all()
    assert gradient[1].abs().sum() > 0 and gradient[4].abs().sum() > 0


class OtherBoxPredictor(FastRCNNOutputLayers):
    """Of somebody else."""


def test_gathered_regression_of_a_box_predictor_that_cannot_is_an_error():
    cfg = tiny.model_config("MODEL.ROI_BOX_HEAD.GATHERED_REGRESSION", True)
    shape = ShapeSpec(channels=12)
    with pytest.raises(ValueError, match=r"GATHERED_REGRESSION is True, but .* is a OtherBoxPredictor"):
        _for_partial_labels(cfg, OtherBoxPredictor(cfg, shape))
    assert isinstance(
        _for_partial_labels(cfg, FastRCNNOutputLayers(cfg, shape)), GatheredFastRCNNOutputLayers
    )
    cfg = tiny.model_config()
    assert type(_for_partial_labels(cfg, OtherBoxPredictor(cfg, shape))) is OtherBoxPredictor
