import json
import re
import shlex
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pycocotools.mask as mask_util
import pytest
import torch
from PIL import Image

from maskx_d2.commands import main as cli
from maskx_d2.demo import run as demo
from maskx_d2.demo import shapes
from maskx_d2.evaluation.average_precision import METRICS
from maskx_d2.runtime.logs import log_to_file

ROWS = {
    "class_agnostic": "class-agnostic",
    "maskx": "Mask^X",
    "maskx_box_supervised": "Mask^X, box-supervised",
    "oracle": "oracle",
}


@pytest.fixture
def results(quick_demo):
    return json.loads((quick_demo[0] / "results.json").read_text())


def ap_on_b(results):
    return {name: of_run["segm"]["B"]["AP"] for name, of_run in results.items()}


def test_results_json_has_every_figure(results):
    assert list(results) == list(ROWS)
    for by_task in results.values():
        assert set(by_task) == {"segm", "bbox"}
        for by_group in by_task.values():
            assert set(by_group) == {"A", "B", "all"}
            assert all(set(values) == set(METRICS) for values in by_group.values())
    # All mask heads stand on one detector.
    assert all(by_task["bbox"] == results["maskx"]["bbox"] for by_task in results.values())


def test_table_and_gains_are_those_of_the_results(quick_demo, results):
    _, printed = quick_demo
    rows = {line.split("|")[1].strip(): line for line in printed.splitlines() if line.startswith("|")}
    baseline = ap_on_b(results)["class_agnostic"]
    for name, title in ROWS.items():
        cells = [cell.strip() for cell in rows[title].strip("|").split("|")][1:]
        expected = [f"{results[name]['segm'][group]['AP']:.1f}" for group in ("A", "B", "all")]
        gain = "-" if name == "class_agnostic" else f"{ap_on_b(results)[name] - baseline:+.1f}"
        assert cells == [*expected, gain]
    assert f"{results['maskx']['bbox']['B']['AP']:.1f} on B" in printed


def test_both_forms_of_mask_x_are_ahead_of_class_agnostic_on_classes_without_masks(results):
    """At this length by 2 to 18 points; what boxes add shows in the whole demo."""
    on_b = ap_on_b(results)
    assert on_b["maskx"] > on_b["class_agnostic"] + 1
    assert on_b["maskx_box_supervised"] > on_b["class_agnostic"] + 1


def test_the_files_of_the_commands_that_it_prints_exist(quick_demo):
    _, printed = quick_demo
    commands = re.findall(r"^  (maskx (?:.*\\\n)*.*)", printed, flags=re.MULTILINE)
    names = [command.split()[1] for command in commands]
    assert {"predict", "cross-validate"} <= set(names)
    for command in commands:
        if command.split()[1] in ("predict", "cross-validate"):
            words = shlex.split(command.replace("\\\n", " ").split("--output")[0])
            assert all(Path(word).exists() for word in words if "/" in word), command


def test_boxes_supervise_one_row_and_all_masks_are_there_for_the_oracle(quick_demo):
    folder, _ = quick_demo
    for name in ROWS:
        lines = [json.loads(line) for line in (folder / name / "metrics.json").read_text().splitlines()]
        # Detectron2 logs no loss that is the only one, but as the total.
        losses = {key for line in lines for key in line if key.startswith("loss_mask_")}
        box_losses = {"loss_mask_projection", "loss_mask_pairwise"}
        assert losses == (box_losses if name == "maskx_box_supervised" else set())
    train, complete = (
        json.loads((folder / "dataset" / "annotations" / name).read_text())["annotations"]
        for name in ("train.json", "train_all_masks.json")
    )
    assert all("segmentation" in a for a in complete)
    assert [a["bbox"] for a in train] == [a["bbox"] for a in complete]


def test_pictures_and_runs_are_where_it_says(quick_demo):
    folder, printed = quick_demo
    pictures = sorted((folder / "pictures").iterdir())
    assert len(pictures) == 12
    assert Image.open(pictures[0]).width > 5 * shapes.IMAGE_SIDE * 3
    for path in ("pictures", "results.json", "stage1", *ROWS):
        assert f"{folder}/{path}" in printed and (folder / path).exists()
    for run in ROWS:
        names = {path.name.split(".")[0] for path in (folder / run).iterdir()}
        assert {"model_final", "metrics", "log", "events", "inference"} <= names
        assert (folder / run / "inference" / "ap_by_group.json").exists()
    assert "maskx predict" in printed and "on COCO" in printed


def test_the_next_command_that_it_prints_runs(quick_demo, tmp_path):
    folder, printed = quick_demo
    lines = printed.splitlines()
    (start,) = [i for i, line in enumerate(lines) if line.strip().startswith("maskx predict")]
    words = f"{lines[start].strip().rstrip(chr(92))} {lines[start + 1].strip()}".split()
    words[words.index("--output") + 1] = str(tmp_path / "predictions")
    cli.main(words[1:])
    num_images = len(list((folder / "dataset" / "test").iterdir()))
    assert len(list((tmp_path / "predictions").glob("*.png"))) == num_images
    results = json.loads((tmp_path / "predictions" / "coco_instances_results.json").read_text())
    # The same model on the same images: what evaluation found, from the same score on.
    evaluated = json.loads(
        (folder / "maskx_box_supervised" / "inference" / "coco_instances_results.json").read_text()
    )
    expected = [r for r in evaluated if r["score"] >= 0.5]
    assert len(results) == len(expected) > 0
    for found, wanted in zip(results, expected, strict=True):
        assert found["file_name"] == f"{wanted['image_id']:06d}.png"
        for key in ("image_id", "category_id"):
            assert found[key] == wanted[key]
        # Not bit for bit: evaluation may have had several images in a batch.
        assert found["bbox"] == pytest.approx(wanted["bbox"], abs=0.01)
        overlap = mask_util.iou([found["segmentation"]], [wanted["segmentation"]], [0])
        assert overlap.item() > 0.98


def test_other_folders_are_not_touched(tmp_path):
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "precious.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds files that are not from a demo: give a new folder"):
        demo.run_demo(tmp_path, backend=None)
    assert (tmp_path / "dataset" / "precious.txt").read_text() == "mine"


def test_an_earlier_demo_is_replaced(tmp_path):
    demo._prepare(tmp_path)
    for name in ("dataset", "maskx", "seed_3"):
        (tmp_path / name).mkdir()
    for name in ("results.json", "standard_deviations.json"):
        (tmp_path / name).write_text("{}")
    demo._prepare(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [".maskx_demo"]


class FakeBackend:
    """Trains nothing, and leaves results that tell row and seed."""

    COCO_COMMAND = "train"
    AP = {"class_agnostic": 20, "maskx_as_in_the_paper": 25, "maskx": 40, "maskx_box_supervised": 50}

    def __init__(self):
        self.runs = []

    def train(self, run):
        self.runs.append(run)
        folder = run.folder / "inference"
        folder.mkdir(parents=True)
        values = dict.fromkeys(METRICS, float(self.AP.get(run.name, 60) + run.seed**2))
        groups = {"A": values, "B": values, "all": {**values, "APl": None}}
        (folder / "ap_by_group.json").write_text(json.dumps({"segm": groups, "bbox": groups}))
        (folder / "coco_instances_results.json").write_text("[]")
        return run.folder / "weights"

    def predict_options(self, folder):
        return f"--weights {folder}"


TINY = demo.Schedule(num_train=2, num_test=2, stage1_iterations=10, stage2_iterations=10)


def test_several_seeds_are_told_one_by_one_and_as_mean_and_deviation(tmp_path, capsys):
    backend = FakeBackend()
    demo.run_demo(tmp_path, backend=backend, seeds=range(1, 4), schedule=TINY)
    printed = capsys.readouterr().out
    # 1, 4 and 9 above what the row has: mean 4.67, deviation 4.04; the gains are all alike.
    assert "24.7 ± 4.0" in printed and "+20.0 ± 0.0" in printed and "+30.0 ± 0.0" in printed
    assert [printed.count(f"Seed {seed}") for seed in (1, 2, 3)] == [1, 1, 1]
    mean = json.loads((tmp_path / "results.json").read_text())
    deviation = json.loads((tmp_path / "standard_deviations.json").read_text())
    assert mean["maskx"]["segm"]["B"]["AP"] == pytest.approx(40 + 14 / 3)
    assert deviation["oracle"]["bbox"]["A"]["AP"] == pytest.approx((49 / 3) ** 0.5)
    assert mean["maskx"]["segm"]["all"]["APl"] is None
    for seed in (1, 2, 3):
        of_seed = json.loads((tmp_path / f"seed_{seed}" / "results.json").read_text())
        assert of_seed["maskx"]["segm"]["B"]["AP"] == 40 + seed**2
    assert {run.seed for run in backend.runs} == {1, 2, 3}


def test_the_papers_own_form_is_trained_if_asked_for(tmp_path, capsys):
    for paper in (False, True):
        backend = FakeBackend()
        demo.run_demo(tmp_path, backend=backend, schedule=TINY, paper=paper)
        assert ("maskx_as_in_the_paper" in [run.name for run in backend.runs]) is paper
        assert ("Mask^X as in the paper" in capsys.readouterr().out) is paper


def test_the_ramp_of_box_supervision_is_a_share_of_the_run(tmp_path):
    run = demo.Training("maskx_box_supervised", "", tmp_path, None, 400, 0)
    assert (run.box_supervision_start, run.box_supervision_warmup) == (160, 80)


@pytest.mark.parametrize("name", ["torchvision", "detectron2"])
def test_features_that_are_remembered_change_no_weight_and_are_computed_once(name, tmp_path, monkeypatch):
    if name == "detectron2" and find_spec("detectron2") is None:
        pytest.skip("needs Detectron2, which is not installed (make detectron2)")
    backend = import_module(f"maskx_d2.demo.on_{name}")
    dataset = shapes.generate(tmp_path / "dataset", num_train=16, num_test=2, seed=0)

    def train(row, folder, **options):
        run = demo.Training(row, "", tmp_path / folder, dataset, 4, 0, **options)
        with log_to_file(run.folder / "log.txt"):
            return backend.train(run)

    detector = train("stage1", "stage1")
    computed = []
    remember = demo.FrozenFeatures.remember

    def counting(self, forward):
        return remember(self, lambda images: (computed.append(len(images)), forward(images))[1])

    monkeypatch.setattr(demo.FrozenFeatures, "remember", counting)
    shared = demo.FrozenFeatures()
    train("class_agnostic", "first", detector=detector, frozen_features=shared)
    num_computed = sum(computed)
    assert num_computed >= 4 * 8
    remembered = train("oracle", "second", detector=detector, frozen_features=shared)
    assert sum(computed) == num_computed
    alone = train("oracle", "alone", detector=detector)
    assert sum(computed) == 2 * num_computed
    key = "state_dict" if name == "torchvision" else "model"
    found, expected = (torch.load(path, weights_only=True)[key] for path in (remembered, alone))
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[parameter]) for parameter, value in found.items())
