import json
from dataclasses import replace

import numpy as np
import pytest

from maskx_d2.method import Schedule
from maskx_d2.recipes.cross_validation import CrossValidation, Outcome, cross_validate, trainings_left
from maskx_d2.recipes.measurement import see_measured
from maskx_d2.recipes.roi_cache import fill_cache
from tests.recipes.tiny import AGNOSTIC, SUPERVISED

RECIPES = {"agnostic": AGNOSTIC, "supervised": SUPERVISED}
SHORT = Schedule(steps=3, images=2, rois=2)


def outcome(hidden, ap, ious=()):
    return Outcome(
        hidden=hidden,
        average_precision=ap,
        classes=[c for c, _ in ious],
        areas=[10.0] * len(ious),
        ious=[iou for _, iou in ious],
        scores=[0.5] * len(ious),
        masks=[None] * len(ious),
    )


def test_figures_are_means_over_hidden_classes_of_each_fold():
    result = CrossValidation(
        class_names=["a", "b", "c", "d"],
        folds=[[0, 1], [2]],
        outcomes={
            "x": [
                outcome([0, 1], [10, 20, 90, None], [(0, 0.5), (0, 0.7), (1, 0.2), (2, 1.0)]),
                outcome([2], [90, 90, 40, None], [(2, 0.9)]),
            ],
            "y": [outcome([0, 1], [30, None, 90, None]), outcome([2], [90, 90, 50, None])],
        },
    )
    assert result.hidden_ap("x") == [15, 40]
    assert result.hidden_ap("y") == [30, 50]
    assert result.hidden_iou("x") == pytest.approx([(0.6 + 0.2) / 2, 0.9])
    assert result.seen_ap("x") == [90, 90]
    assert result.best == "y"
    np.testing.assert_allclose(result.hidden_objects("x").ious, [0.5, 0.7, 0.2, 0.9])


def test_of_equal_recipes_the_first_is_taken():
    folds = [[0], [1]]
    same = [outcome([0], [10, 90]), outcome([1], [90, 20])]
    assert CrossValidation(["a", "b"], folds, {"first": same, "second": same}).best == "first"


@pytest.fixture(scope="module")
def seen(detector, annotated, tmp_path_factory):
    images = annotated.images[:30]
    cache = fill_cache(tmp_path_factory.mktemp("cache") / "c", detector, images, sides=[14])
    held_out = annotated.some(annotated.images[30:45])
    return cache, see_measured(detector, held_out.images, sides=[14]), held_out


def run(detector, seen, folder, folds=((0, 1, 2), (3, 4, 5)), recipes=RECIPES, progress=None):
    cache, measured, held_out = seen
    options = {} if progress is None else {"progress": progress}
    return cross_validate(
        detector,
        cache,
        measured,
        held_out,
        recipes=recipes,
        folds=folds,
        schedule=SHORT,
        folder=folder,
        **options,
    )


def test_each_recipe_is_trained_on_each_fold_with_its_classes_hidden(detector, seen, tmp_path):
    titles = []

    def progress(steps, title):
        titles.append(title)
        return steps

    result = run(detector, seen, tmp_path, progress=progress)
    assert titles == [f"{recipe.title}, fold {fold} of 2" for fold in (1, 2) for recipe in RECIPES.values()]
    for name in RECIPES:
        assert [o.hidden for o in result.outcomes[name]] == [[0, 1, 2], [3, 4, 5]]
    assert trainings_left(tmp_path, RECIPES, 2) == 0


def test_an_interrupted_run_continues_and_ends_as_if_it_had_not_stopped(detector, seen, tmp_path):
    class Stop(Exception):
        pass

    done = []

    def stop_at_the_third(steps, title):
        if len(done) == 2:
            raise Stop
        done.append(title)
        return steps

    with pytest.raises(Stop):
        run(detector, seen, tmp_path / "a", progress=stop_at_the_third)
    assert trainings_left(tmp_path / "a", RECIPES, 2) == 2
    continued = []
    result = run(
        detector, seen, tmp_path / "a", progress=lambda steps, title: continued.append(title) or steps
    )
    assert len(continued) == 2
    whole = run(detector, seen, tmp_path / "b")
    assert result.outcomes == whole.outcomes


def test_outcomes_of_other_folds_are_refused(detector, seen, tmp_path):
    recipes = {"agnostic": replace(AGNOSTIC)}
    run(detector, seen, tmp_path, recipes=recipes)
    with pytest.raises(ValueError, match=r"agnostic_0.json is of other folds than this run"):
        run(detector, seen, tmp_path, folds=((0, 1), (2, 3)), recipes=recipes)


def test_a_broken_outcome_is_refused(detector, seen, tmp_path):
    (tmp_path / "agnostic_0.json").write_text(json.dumps({"hidden": "x"}))
    with pytest.raises(ValueError, match=r"agnostic_0.json is not an outcome"):
        run(detector, seen, tmp_path)
