"""What a benchmark shows that is no timing."""

import argparse
import json
import os
import runpy
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from .forked import run_forked

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def run_benchmark(monkeypatch, capsys):
    """Run a program of the folder in this process, and return what it prints."""

    def run(name, *options):
        monkeypatch.setattr(sys, "argv", [name, *map(str, options)])
        runpy.run_path(str(BENCHMARKS / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_ingredients_are_compared_on_the_same_detectors(run_benchmark, tmp_path):
    """At the smallest size, where no mask head learns anything: every part of the program runs."""
    recipes = ["class_agnostic", "deep_r2", "self_training", "principal_components"]
    smallest = ["--detector-iterations", "2", "--iterations", "2", "--images", "10", "--test-images", "8"]
    printed = run_benchmark(
        "unseen_classes.py",
        *("--output", tmp_path, "--datasets", "textured_forms", "--seeds", "0", "1"),
        *("--recipes", *recipes, *smallest),
    )
    results = json.loads((tmp_path / "unseen_classes.json").read_text())["textured_forms"]
    assert list(results) == recipes
    assert all(set(of_seeds) == {"0", "1"} for of_seeds in results.values())
    rows = [line for line in printed.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(recipes) and rows[-1].count("±") == 4
    for name in ("unseen_classes.svg", "unseen_classes.png"):
        assert (tmp_path / name).stat().st_size > 1000


def test_filled_masks_are_measured_and_learned_from(run_benchmark, tmp_path):
    """On an untrained detector, where all figures are low: every part of the program runs."""
    from maskx_d2.demo import on_torchvision as backend
    from maskx_d2.demo import run as demo
    from maskx_d2.demo import shapes
    from maskx_d2.runtime.logs import log_to_file

    folder = tmp_path / "demo"
    dataset = shapes.generate(folder / "dataset", num_train=12, num_test=4, seed=0)
    with log_to_file(folder / "log.txt"):
        detector = backend.train(demo.Training("stage1", "", folder / "stage1", dataset, 2, 0))
        for name in ("class_agnostic", "maskx", "maskx_box_supervised", "oracle"):
            backend.train(demo.Training(name, "", folder / name, dataset, 2, 0, detector=detector))
    options = ["--demo", folder, "--output", tmp_path / "filled", "--iterations", "2"]
    lines = run_benchmark("fill_masks.py", *options).splitlines()
    assert sum("mean IoU" in line for line in lines) == 4
    assert sum("mask AP on A" in line for line in lines) == 5


def test_what_a_gpu_is_measured_by_runs_on_a_cpu_and_one_part_that_fails_leaves_the_others(
    tmp_path, monkeypatch
):
    """Waiting for a GPU is what a CPU cannot measure."""
    if find_spec("detectron2") is None:
        pytest.skip("needs Detectron2, which is not installed (make detectron2)")
    words = ["--small", "--device", "cpu", "--output", str(tmp_path / "gpu.json")]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *words])
    done = run_forked(lambda: runpy.run_path(str(BENCHMARKS / "gpu.py"), run_name="__main__"))
    assert done.returncode == 1 and not [line for line in done.stdout.splitlines() if "failed" in line]
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert parts.pop("waits")["failed"] == "ValueError: only a GPU is waited for"
    assert len(parts) == 10 and not [name for name, part in parts.items() if "failed" in part]
    assert all(row["same"] for row in parts["same_as_on_cpu"]["rows"])
    assert [row["backend"] for row in parts["runs"]["rows"]] == ["Detectron2", "torchvision"]
    assert all(row["images/s"] > 0 for row in parts["predict"]["rows"])
    others = ("same_as_on_cpu", "runs", "predict")
    rows = [row for name, part in parts.items() if name not in others for row in part["rows"]]
    assert len(rows) > 40 and all(row["ms"] > 0 and row["ratio"] > 0 for row in rows)
    for row in parts["inference"]["rows"]:
        assert row["million parameters"] > 1 and row["GFLOP"] > 0.1 and row["detections"] > 50


def test_a_part_has_so_long_and_its_process_may_end(monkeypatch):
    import gpu

    args, outcomes = argparse.Namespace(threads=1), []
    for part in (lambda args: time.sleep(60), lambda args: os._exit(9), lambda args: [{"ms": 1.0}]):
        monkeypatch.setitem(gpu.PARTS, part.__name__, part)
        outcomes.append(gpu.run_part(part.__name__, args, 1))
    late, ended, done = outcomes
    assert late["failed"] == "took over 1 s" and late["seconds"] < 30
    assert ended["failed"] == "its process ended with 9"
    assert done["rows"] == [{"ms": 1.0}]


# ---- Recipes on a frozen detector ----


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    """Options that name a generated dataset with all masks and an untrained detector; and its split."""
    from maskx_d2.demo import shapes
    from tests.recipes.tiny import write_detector

    folder = tmp_path_factory.mktemp("frozen")
    dataset = shapes.generate(folder / "dataset", num_train=40, num_test=16, seed=0)
    categories = json.loads(dataset.train_json.read_text())["categories"]
    weights = write_detector(folder / "detector.ckpt", categories)
    options = [
        *("--train", dataset.all_masks_json, dataset.train_images, "--weights", weights),
        *("--val", dataset.test_json, dataset.test_images, "--steps", 2, "--channels", 8),
    ]
    return list(map(str, options)), str(dataset.split_file)


def test_recipes_are_compared_on_one_detector_and_rows_can_be_added(frozen, run_benchmark, tmp_path):
    options, split = frozen
    options = [*options, "--split", split, "--output", tmp_path]
    run_benchmark("photographs.py", *options, "--rows", "class_agnostic", "oracle")
    before = json.loads((tmp_path / "results.json").read_text())
    printed = run_benchmark("photographs.py", *options, "--rows", "class_agnostic", "dropout_all_three")
    after = json.loads((tmp_path / "results.json").read_text())
    assert list(after) == ["class_agnostic", "oracle", "dropout_all_three"]
    assert after["class_agnostic"] == before["class_agnostic"]
    assert sum(line.startswith("|") for line in printed.splitlines()) == 2 + 3


def test_cross_validation_is_compared_with_the_truth(frozen, run_benchmark, tmp_path):
    options, split = frozen
    printed = run_benchmark(
        "cross_validation.py", *options, "--hide", split, "--folds", 2, "--output", tmp_path
    )
    truth = json.loads((tmp_path / "truth.json").read_text())
    assert len(truth["recipes"]) == 5 and truth["cost_of_the_choice"] >= 0
    assert len(truth["hidden"]) == 8 and "rank_correlation" in printed
    content = json.loads((tmp_path / "train.json").read_text())
    ids = {c["id"] for c in content["categories"] if c["name"] in truth["hidden"]}
    assert not any("segmentation" in a for a in content["annotations"] if a["category_id"] in ids)


def test_students_are_compared_with_their_teachers(frozen, run_benchmark, tmp_path):
    options, split = frozen
    options = [*options, "--hide", split, "--output", tmp_path, "--seeds", 0]
    printed = run_benchmark("teachers.py", *options, "--faults", "eroded", "joined", "--scores", "informed")
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results) == ["boxes alone", "eroded, informed scores", "joined, informed scores"]
    assert 0.1 < results["eroded, informed scores"]["0"]["teacher_iou"] < 0.95
    assert 0.4 < results["joined, informed scores"]["0"]["teacher_iou"] < 0.95
    assert sum(line.startswith("|") for line in printed.splitlines()) == 2 + 3
