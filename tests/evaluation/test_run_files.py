import json
import re

import pytest

from maskx_d2.evaluation.run_files import read_run

from . import runs, synthetic


def test_ap_of_each_class_is_pycocotools_on_a_json_of_that_class(tmp_path):
    truth = runs.dataset(tmp_path / "data")
    run = read_run(runs.run(tmp_path / "run", truth))
    content, results = json.loads(truth.read_text()), run.detections()
    for task in ("bbox", "segm"):
        for index, category_id in enumerate(synthetic.CATEGORY_IDS):
            kept = [r for r in results if r["category_id"] == category_id]
            expected = synthetic.pycocotools_metrics(synthetic.only(content, [category_id]), kept, task)
            assert run.evaluation.by_class[task][index] == pytest.approx(expected["AP"], abs=1e-9)


def test_what_is_written_is_what_is_read(tmp_path):
    truth = runs.dataset(tmp_path / "data")
    evaluation = read_run(runs.run(tmp_path / "run", truth)).evaluation
    assert evaluation.with_masks == [1, 4] and evaluation.category_ids == list(synthetic.CATEGORY_IDS)
    assert evaluation.annotations == str(truth.resolve())
    written = json.loads((tmp_path / "run" / "inference" / "ap_by_group.json").read_text())
    assert evaluation.by_group == written


def test_a_class_without_ground_truth_has_no_ap(tmp_path):
    content = synthetic.ground_truth(categories=(2, 3, 5, 9))
    run = read_run(runs.run(tmp_path / "run", runs.dataset(tmp_path / "data", content)))
    assert [ap is None for ap in run.evaluation.by_class["segm"]] == [False, False, False, False, True]


def test_what_a_resumed_run_logged_again_counts(tmp_path):
    folder = runs.run(tmp_path / "run", runs.dataset(tmp_path / "data"))
    with (folder / "metrics.json").open("a") as file:
        file.write('{"iteration": 60, "total_loss": 7.5}\n\n{"iteration": 80, "bbox/AP": 3}\n{"iter')
    metrics = read_run(folder).metrics()
    assert [line["iteration"] for line in metrics] == [20, 40, 60, 80, 100]
    assert metrics[2]["total_loss"] == 7.5 and metrics[2]["loss_mask"] == pytest.approx(1 / 3)
    assert metrics[3]["bbox/AP"] == 3 and "total_loss" in metrics[3]


def test_a_folder_without_an_evaluated_run_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"has no inference/evaluation.json, expected the output of"
    ):
        read_run(tmp_path)
    (tmp_path / "inference").mkdir()
    (tmp_path / "inference" / "evaluation.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match=r"evaluation.json is not what an evaluation writes"):
        read_run(tmp_path)


def test_a_run_that_logged_and_detected_nothing_can_be_read(tmp_path):
    folder = runs.run(tmp_path / "run", runs.dataset(tmp_path / "data"))
    (folder / "metrics.json").unlink()
    (folder / "inference" / "coco_instances_results.json").unlink()
    run = read_run(folder)
    assert run.metrics() == [] and run.detections() == []


def test_detections_that_are_cut_off_are_named(tmp_path):
    folder = runs.run(tmp_path / "run", runs.dataset(tmp_path / "data"))
    (folder / "inference" / "coco_instances_results.json").write_text('[{"image')
    with pytest.raises(ValueError, match=r"coco_instances_results.json is not JSON"):
        read_run(folder).detections()


def changed(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(class_names="ab"), "Expected `array`, got `str` - at `$.class_names`"),
        (lambda c: c["category_ids"].pop(), "has 4 category_ids for 5 classes, expected one each"),
        (lambda c: c["by_class"]["segm"].append(1), "has 6 segm for 5 classes, expected one each"),
        (lambda c: c.update(with_masks=[0, 9]), "has with_masks that are not indices of its 5 classes"),
        (lambda c: c["category_ids"].__setitem__(0, 3), "has category_ids twice, expected each once"),
        (lambda c: c["by_group"].update(segm=3), "Expected `object`, got `int`"),
    ],
)
def test_an_evaluation_of_other_types_is_named(tmp_path, change, message):
    folder = runs.run(tmp_path / "run", runs.dataset(tmp_path / "data"))
    changed(folder / "inference" / "evaluation.json", change)
    with pytest.raises(ValueError, match=rf"evaluation.json .*{re.escape(message)}"):
        read_run(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c[0].update(bbox=[1, 2, 3]), "Expected `array` of length >= 4"),
        (lambda c: c[0].update(score="1"), "Expected `float`, got `str`"),
        (lambda c: c[0].update(category_id=77), "has category_id 77, which is not among those evaluated"),
        (
            lambda c: c[0].update(bbox=[-1e308, 17, 43, 43]),
            "Expected `float` >= -1000000000.0 - at `$[0].bbox",
        ),
        (lambda c: c[0].update(bbox=[0, 0, 1e10, 1]), "Expected `float` <= 1000000000.0 - at `$[0].bbox"),
        (lambda c: c.append(None), "Expected `object`, got `null`"),
    ],
)
def test_detections_of_other_types_are_named(tmp_path, change, message):
    folder = runs.run(tmp_path / "run", runs.dataset(tmp_path / "data"))
    changed(folder / "inference" / "coco_instances_results.json", change)
    with pytest.raises(ValueError, match=rf"coco_instances_results.json .*{re.escape(message)}"):
        read_run(folder).detections()


@pytest.mark.parametrize("line", ["[1]", "3", "{}", '{"iteration": "a"}', "\x80", '{"iteration": true}'])
def test_lines_of_metrics_that_are_none_are_passed_over(tmp_path, line):
    folder = runs.run(tmp_path / "run", runs.dataset(tmp_path / "data"))
    expected = read_run(folder).metrics()
    with (folder / "metrics.json").open("a", encoding="latin1") as file:
        file.write(line + "\n")
    assert read_run(folder).metrics() == expected
