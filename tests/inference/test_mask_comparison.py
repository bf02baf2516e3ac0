"""Two models on the masks that exist: means by group, and the better one for each class."""

import json
import math
from statistics import fmean

import numpy as np
import pytest

from maskx_d2.inference.mask_comparison import MIN_MASKS, MaskComparison, MaskedObject, better_models

SIDES = {"cat": "A", "dog": "B", "hen": "B", "cow": "-"}


def objects(name, number, *, model, teacher, has_mask=True, seed=0):
    """Objects of a class with IoU around the given means; scores of the teacher are 0.2 too high."""
    generator = np.random.default_rng(seed)
    for _ in range(number):
        ious = {"model": model + generator.normal(0, 0.02), "teacher": teacher + generator.normal(0, 0.02)}
        scores = {"model": ious["model"], "teacher": min(ious["teacher"] + 0.2, 1.0)}
        area = float(generator.uniform(100, 10_000))
        yield MaskedObject(name, area, scores, ious if has_mask else None)


def comparison(*parts):
    return MaskComparison(["model", "teacher"], SIDES, [known for part in parts for known in part])


def test_means_of_groups_are_those_of_their_objects():
    compared = comparison(
        objects("cat", 20, model=0.8, teacher=0.6),
        objects("dog", 13, model=0.5, teacher=0.7, seed=1),
        objects("hen", 5, model=0.5, teacher=0.7, has_mask=False),
    )
    groups = {group.name: group for group in compared.groups()}
    for side, name in (("A: trained with masks", "cat"), ("B: trained with boxes only", "dog")):
        expected = [known.ious["model"] for known in compared.objects if known.class_name == name]
        for group in (groups[side], groups[name]):
            assert group.num_objects == len(expected)
            assert group.mean_iou["model"] == pytest.approx(fmean(expected))
    sizes = [group for group in groups.values() if group.kind == "size"]
    assert [group.num_objects for group in sizes] == [11, 11, 11]
    smallest = sorted(compared.measured, key=lambda known: known.area)[:11]
    expected = fmean(known.ious["teacher"] for known in smallest)
    assert sizes[0].mean_iou["teacher"] == pytest.approx(expected)
    assert "hen" not in groups
    table = compared.table()
    assert f"{groups['cat'].mean_iou['teacher']:.3f}" in table and "mean IoU, teacher" in table


def test_a_class_that_the_model_does_not_know_has_no_figure_of_it():
    unknown = [
        MaskedObject("cow", 100.0, {"model": 0.0, "teacher": 0.5}, {"model": math.nan, "teacher": 0.5})
    ]
    compared = comparison(unknown, objects("cat", 3, model=0.8, teacher=0.6))
    (line,) = [line for line in compared.table().splitlines() if line.startswith("| cow")]
    assert [cell.strip() for cell in line.strip("|").split("|")] == ["cow", "-", "1", "-", "0.500"]
    content = json.loads(json.dumps(compared.as_dict({})))
    (group,) = [group for group in content["groups"] if group["name"] == "cow"]
    assert group["mean_iou"] == {"model": None, "teacher": 0.5}


def test_a_class_with_masks_gets_the_model_that_is_better_on_them():
    compared = comparison(
        objects("cat", MIN_MASKS, model=0.8, teacher=0.6), objects("dog", MIN_MASKS, model=0.5, teacher=0.7)
    )
    choices = better_models(compared, is_calibrated=False, unknown=frozenset())
    assert {name: (choice.model, choice.reason) for name, choice in choices.items()} == {
        "cat": ("model", "measured"),
        "dog": ("teacher", "measured"),
    }


def test_scores_that_are_too_high_do_not_make_a_teacher_the_better_one():
    """Its scores say 0.8 where its IoU is 0.6; the model's, which are calibrated, say 0.7."""
    compared = comparison(
        objects("cat", 300, model=0.9, teacher=0.6),
        objects("dog", 50, model=0.7, teacher=0.6, has_mask=False),
        objects("hen", 50, model=0.5, teacher=0.6, has_mask=False, seed=3),
    )
    choices = better_models(compared, is_calibrated=True, unknown=frozenset())
    assert (choices["dog"].model, choices["dog"].reason) == ("model", "estimated")
    assert choices["dog"].quality == pytest.approx({"model": 0.7, "teacher": 0.6}, abs=0.02)
    assert choices["hen"].model == "teacher"


@pytest.mark.parametrize(("is_calibrated", "num_masks"), [(False, 300), (True, MIN_MASKS - 1)])
def test_what_cannot_be_told_is_left_to_the_model(is_calibrated, num_masks):
    compared = comparison(
        objects("cat", num_masks, model=0.5, teacher=0.9),
        objects("dog", 50, model=0.3, teacher=0.9, has_mask=False),
        objects("cow", 5, model=0.0, teacher=0.9, has_mask=False),
    )
    choices = better_models(compared, is_calibrated=is_calibrated, unknown=frozenset({"cow"}))
    assert (choices["dog"].model, choices["dog"].reason) == ("model", "not known")
    assert choices["cow"].model == "teacher"
