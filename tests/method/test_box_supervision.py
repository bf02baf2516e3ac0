"""Box supervision against its definition, spelled out cell by cell in float64."""

import copy
import itertools
import math

import pytest
import torch

from maskx_d2.method import BoxSupervision
from maskx_d2.method.box_supervision import (
    box_coverage,
    colour_similarity,
    known_background_loss,
    pairwise_loss,
    projection_loss,
    rgb_to_lab,
)

SIDE = 7


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def naive_coverage(roi, box, side):
    """Share of each row and column of cells that a box covers, by the overlap of intervals."""

    def shares(low, high):
        cell = (roi[high] - roi[low]) / side
        edges = [roi[low] + cell * i for i in range(side + 1)]
        return [max(0.0, min(b, box[high]) - max(a, box[low])) / cell for a, b in itertools.pairwise(edges)]

    return shares(1, 3), shares(0, 2)


def naive_dice(predicted, target):
    overlap = 2 * sum(p * t for p, t in zip(predicted, target, strict=True))
    return 1 - overlap / (sum(p * p for p in predicted) + sum(t * t for t in target) + 1e-5)


def naive_projection(logits, rows, columns):
    total = 0.0
    for n, of_roi in enumerate(logits):
        mask = [[sigmoid(v) for v in row] for row in of_roi]
        total += naive_dice([max(row) for row in mask], rows[n])
        total += naive_dice([max(column) for column in zip(*mask, strict=True)], columns[n])
    return total / len(logits)


def naive_known_background(logits, is_background):
    terms = [
        -math.log(1 - sigmoid(v))
        for of_roi, cells in zip(logits, is_background, strict=True)
        for row, marks in zip(of_roi, cells, strict=True)
        for v, mark in zip(row, marks, strict=True)
        if mark
    ]
    return sum(terms) / len(terms) if terms else 0.0


def naive_pairs(in_box, lab):
    """(n, y, x, y', x') of a cell in the box and a neighbour of similar colour."""
    for n, of_roi in enumerate(in_box):
        side = len(of_roi)
        for y in range(side):
            for x in range(side):
                for dy in (-2, 0, 2):
                    for dx in (-2, 0, 2):
                        v, u = y + dy, x + dx
                        if (dy, dx) == (0, 0) or not of_roi[y][x] or not (0 <= v < side and 0 <= u < side):
                            continue
                        distance = math.dist(
                            [lab[n][c][y][x] for c in range(3)], [lab[n][c][v][u] for c in range(3)]
                        )
                        if math.exp(-distance / 2) >= 0.3:
                            yield n, y, x, v, u


def naive_pairwise(logits, in_box, lab):
    terms = []
    for n, y, x, v, u in naive_pairs(in_box, lab):
        a, b = sigmoid(logits[n][y][x]), sigmoid(logits[n][v][u])
        terms.append(-math.log(a * b + (1 - a) * (1 - b)))
    return sum(terms) / len(terms) if terms else 0.0


def numeric_gradient(function, logits, epsilon=1e-6):
    gradient = torch.zeros_like(logits)
    for index in torch.cartesian_prod(*(torch.arange(s) for s in logits.shape)).tolist():
        values = []
        for sign in (1, -1):
            moved = logits.clone()
            moved[tuple(index)] += sign * epsilon
            values.append(function(moved.tolist()))
        gradient[tuple(index)] = (values[0] - values[1]) / (2 * epsilon)
    return gradient


def assert_equal_with_gradient(loss, naive, logits):
    logits = logits.double().requires_grad_()
    value = loss(logits)
    (gradient,) = torch.autograd.grad(value, logits)
    assert value.item() == pytest.approx(naive(logits.tolist()), rel=1e-9, abs=1e-12)
    assert torch.allclose(gradient, numeric_gradient(naive, logits.detach()), atol=1e-8)
    assert gradient.abs().max() > 0


def scene(seed=0):
    """Logits of three RoIs, the RoIs, and boxes: one within its RoI, one beyond it, one cell for cell."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, SIDE, SIDE, generator=generator, dtype=torch.float64)
    rois = torch.tensor([[3.0, 5.0, 31.0, 26.0], [10.0, 2.0, 24.5, 44.0], [0.0, 0.0, 14.0, 14.0]])
    boxes = torch.tensor([[8.5, 7.25, 26.0, 20.0], [4.0, 9.0, 22.0, 60.0], [2.0, 2.0, 12.0, 12.0]])
    return logits, rois.double(), boxes.double()


def test_coverage_is_the_overlap_of_each_cell_with_the_box():
    _, rois, boxes = scene()
    rows, columns = box_coverage(rois, boxes, SIDE)
    for n in range(3):
        expected_rows, expected_columns = naive_coverage(rois[n].tolist(), boxes[n].tolist(), SIDE)
        assert rows[n].tolist() == pytest.approx(expected_rows)
        assert columns[n].tolist() == pytest.approx(expected_columns)
    assert rows[2].tolist() == [0, 1, 1, 1, 1, 1, 0]


def test_coverage_of_a_roi_without_an_area_is_finite():
    roi = torch.tensor([[5.0, 5.0, 5.0, 9.0]])
    for shares in box_coverage(roi, torch.tensor([[1.0, 1.0, 9.0, 9.0]]), SIDE):
        assert torch.isfinite(shares).all() and shares.min() >= 0 and shares.max() <= 1


def test_projection_loss_and_its_gradient_are_those_of_the_definition():
    logits, rois, boxes = scene()
    rows, columns = box_coverage(rois, boxes, SIDE)
    assert_equal_with_gradient(
        lambda x: projection_loss(x, rows, columns),
        lambda x: naive_projection(x, rows.tolist(), columns.tolist()),
        logits,
    )


def test_known_background_loss_and_its_gradient_are_those_of_the_definition():
    logits, _, _ = scene()
    background = torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) < 0.3
    background[1] = False
    assert_equal_with_gradient(
        lambda x: known_background_loss(x, background),
        lambda x: naive_known_background(x, background.tolist()),
        logits,
    )
    assert known_background_loss(logits, torch.zeros_like(background)) == 0


@pytest.mark.parametrize("scale", [1.0, 6.0])
def test_pairwise_loss_and_its_gradient_are_those_of_the_definition(scale):
    logits, _, _ = scene()
    generator = torch.Generator().manual_seed(2)
    in_box = torch.rand(3, SIDE, SIDE, generator=generator) < 0.6
    lab = 3 * torch.rand(3, 3, SIDE, SIDE, generator=generator, dtype=torch.float64)
    num_pairs = len(list(naive_pairs(in_box.tolist(), lab.tolist())))
    assert 50 < num_pairs < 0.9 * 8 * in_box.sum()
    assert_equal_with_gradient(
        lambda x: pairwise_loss(x, in_box, colour_similarity(lab)),
        lambda x: naive_pairwise(x, in_box.tolist(), lab.tolist()),
        scale * logits,
    )


def test_pairwise_loss_of_certain_logits_is_finite():
    logits = torch.full((1, SIDE, SIDE), 200.0)
    logits[0, :, 3:] = -200.0
    logits.requires_grad_()
    loss = pairwise_loss(logits, torch.ones(1, SIDE, SIDE).bool(), torch.ones(1, 8, SIDE, SIDE))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        # Published values for D65 and the 2 degree observer.
        ((255, 255, 255), (100.0, 0.0, 0.0)),
        ((0, 0, 0), (0.0, 0.0, 0.0)),
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 255, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
        ((128, 128, 128), (53.59, 0.0, 0.0)),
        ((5, 5, 5), (1.37, 0.0, 0.0)),
    ],
)
def test_lab_colours_are_the_published_ones(rgb, lab):
    found = rgb_to_lab(torch.tensor([rgb], dtype=torch.float64)[:, :, None] / 255)
    assert found[0, :, 0].tolist() == pytest.approx(lab, abs=0.02)


def all_losses(**options):
    options = {"projection": 0.3, "known_background": 0.5, "pairwise": 0.2, **options}
    return BoxSupervision(**options).double()


def run(supervision, logits, rois, boxes, others=None, colours=None):
    n, side = len(logits), logits.shape[-1]
    others = torch.zeros(n, side, side, dtype=torch.bool) if others is None else others
    colours = torch.zeros(n, 3, side, side, dtype=logits.dtype) if colours is None else colours
    return supervision(logits, rois=rois, boxes=boxes, other_masks=others, colours=colours)


def test_the_losses_together_are_weighted_and_see_box_others_and_colours():
    logits, rois, boxes = scene()
    generator = torch.Generator().manual_seed(3)
    others = torch.rand(3, SIDE, SIDE, generator=generator) < 0.2
    colours = torch.rand(3, 3, SIDE, SIDE, generator=generator, dtype=torch.float64) / 10
    losses = run(all_losses(), logits, rois, boxes, others, colours)
    coverage = [naive_coverage(r, b, SIDE) for r, b in zip(rois.tolist(), boxes.tolist(), strict=True)]
    rows, columns = zip(*coverage, strict=True)
    in_box = [[[r * c >= 0.5 for c in columns[n]] for r in rows[n]] for n in range(3)]
    background = [
        [[others[n, y, x].item() or not in_box[n][y][x] for x in range(SIDE)] for y in range(SIDE)]
        for n in range(3)
    ]
    assert losses["projection"].item() == pytest.approx(
        0.3 * naive_projection(logits.tolist(), rows, columns)
    )
    assert losses["known_background"].item() == pytest.approx(
        0.5 * naive_known_background(logits.tolist(), background)
    )
    assert losses["pairwise"].item() == pytest.approx(
        0.2 * naive_pairwise(logits.tolist(), in_box, rgb_to_lab(colours).tolist())
    )


def test_losses_without_a_weight_are_left_out_and_need_no_colours():
    supervision = BoxSupervision(known_background=0.3)
    assert not supervision.needs_colours and all_losses().needs_colours
    logits, rois, boxes = scene()
    losses = supervision(logits, rois=rois, boxes=boxes, other_masks=torch.zeros_like(logits).bool())
    assert set(losses) == {"known_background"}


def test_they_are_zero_before_start_rise_over_warmup_and_stay():
    supervision = all_losses(start=3, warmup=4)
    logits, rois, boxes = scene()
    full = {name: loss.item() for name, loss in run(all_losses(), logits, rois, boxes).items()}
    shares = []
    for _ in range(10):
        losses = run(supervision, logits, rois, boxes)
        (share,) = {
            round(losses[name].item() / full[name], 6) for name in ("projection", "known_background")
        }
        shares.append(share)
    assert shares == [0, 0, 0, 0.2, 0.4, 0.6, 0.8, 1, 1, 1]


def test_a_resumed_run_goes_on_in_the_ramp():
    logits, rois, boxes = scene()
    through, killed = all_losses(start=1, warmup=5), all_losses(start=1, warmup=5)
    for _ in range(3):
        run(through, logits, rois, boxes)
        run(killed, logits, rois, boxes)
    resumed = all_losses(start=1, warmup=5)
    resumed.load_state_dict(copy.deepcopy(killed.state_dict()))
    expected, found = (run(s, logits, rois, boxes) for s in (through, resumed))
    assert {k: v.item() for k, v in found.items()} == {k: v.item() for k, v in expected.items()}
    assert 0 < found["projection"] < run(all_losses(), logits, rois, boxes)["projection"]


def test_without_rois_they_are_zero_and_depend_on_the_logits():
    logits = torch.zeros(0, SIDE, SIDE, requires_grad=True)
    losses = run(all_losses(), logits, torch.zeros(0, 4), torch.zeros(0, 4))
    assert set(losses) == {"projection", "known_background", "pairwise"}
    assert all(loss.item() == 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert logits.grad is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_computed_in_single_precision(dtype):
    logits, rois, boxes = (t.float() for t in scene())
    half = logits.to(dtype)
    found = run(all_losses().float(), half, rois, boxes, colours=torch.zeros(3, 3, SIDE, SIDE))
    expected = run(all_losses().float(), half.float(), rois, boxes)
    for name, loss in found.items():
        assert loss.dtype == torch.float32 and loss == expected[name]


@pytest.mark.parametrize("name", ["projection", "known_background", "pairwise", "start", "warmup"])
@pytest.mark.parametrize("value", [-1, math.inf, math.nan])
def test_values_that_mean_nothing_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"{name} of the box supervision is {value}, expected 0 or more"):
        BoxSupervision(**{name: value})


def test_missing_colours_are_an_error():
    logits, rois, boxes = scene()
    with pytest.raises(ValueError, match="colours are None, expected"):
        all_losses()(logits, rois=rois, boxes=boxes, other_masks=torch.zeros_like(logits).bool())


def test_losses_that_say_nothing_on_the_box_itself_are_refused_there():
    BoxSupervision(known_background=1).check_rois("ground_truth")
    all_losses().check_rois("both")
    for name in ("projection", "pairwise"):
        with pytest.raises(ValueError, match=f"train_rois is 'ground_truth'.*{name}"):
            BoxSupervision(**{name: 1}).check_rois("ground_truth")


def test_all_foreground_is_not_the_best_where_the_roi_reaches_beyond_the_box():
    """A square of one colour in its box, around it another: the true mask has the lower loss."""
    rois, boxes = torch.tensor([[0.0, 0.0, 14.0, 14.0]]), torch.tensor([[4.0, 4.0, 10.0, 10.0]])
    inside = torch.zeros(1, 14, 14, dtype=torch.bool)
    inside[:, 4:10, 4:10] = True
    colours = torch.where(inside.unsqueeze(1), torch.tensor([0.9, 0.1, 0.1]).view(1, 3, 1, 1), 0.2)
    everything = torch.full((1, 14, 14), 8.0)
    truth = torch.where(inside, 8.0, -8.0)
    totals = [
        sum(run(all_losses().float(), logits, rois, boxes, colours=colours).values()).item()
        for logits in (truth, everything)
    ]
    assert totals[0] < 0.01 < totals[1]
