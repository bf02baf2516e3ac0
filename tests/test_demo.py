import json
import subprocess
import sys

import pycocotools.mask as mask_util
import pytest
from PIL import Image

from maskx_d2 import demo
from maskx_d2.data import shapes
from maskx_d2.evaluation.average_precision import METRICS


def test_results_json_has_every_figure(quick_demo):
    folder, _ = quick_demo
    results = json.loads((folder / "results.json").read_text())
    assert set(results) == {"class_agnostic", "maskx"}
    for by_task in results.values():
        assert set(by_task) == {"segm", "bbox"}
        for by_group in by_task.values():
            assert set(by_group) == {"A", "B", "all"}
            assert all(set(values) == set(METRICS) for values in by_group.values())
    # Both mask heads stand on one detector.
    assert results["class_agnostic"]["bbox"] == results["maskx"]["bbox"]


def test_table_and_gain_are_those_of_the_results(quick_demo):
    folder, printed = quick_demo
    results = json.loads((folder / "results.json").read_text())
    rows = {line.split("|")[1].strip(): line for line in printed.splitlines() if line.startswith("|")}
    for name, title in (("class_agnostic", "class-agnostic"), ("maskx", "Mask^X")):
        cells = [cell.strip() for cell in rows[title].strip("|").split("|")][1:]
        expected = [results[name][t][g]["AP"] for t in ("segm", "bbox") for g in ("A", "B", "all")]
        assert cells == [f"{value:.1f}" for value in expected]
    gain = results["maskx"]["segm"]["B"]["AP"] - results["class_agnostic"]["segm"]["B"]["AP"]
    assert f"Mask^X is {gain:+.1f} mask AP" in printed


def test_mask_x_is_ahead_of_class_agnostic_on_classes_without_masks(quick_demo):
    folder, _ = quick_demo
    results = json.loads((folder / "results.json").read_text())
    gain = results["maskx"]["segm"]["B"]["AP"] - results["class_agnostic"]["segm"]["B"]["AP"]
    assert gain > 3


def test_pictures_and_runs_are_where_it_says(quick_demo):
    folder, printed = quick_demo
    pictures = sorted((folder / "pictures").iterdir())
    assert len(pictures) == 12
    assert Image.open(pictures[0]).width > 3 * shapes.IMAGE_SIDE * 3
    for path in ("pictures", "results.json", "stage1", "class_agnostic", "maskx"):
        assert f"{folder}/{path}" in printed and (folder / path).exists()
    for run in ("class_agnostic", "maskx"):
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
    done = subprocess.run([sys.executable, "-m", "maskx_d2", *words[1:]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    num_images = len(list((folder / "dataset" / "test").iterdir()))
    assert len(list((tmp_path / "predictions").glob("*.png"))) == num_images
    results = json.loads((tmp_path / "predictions" / "coco_instances_results.json").read_text())
    # The same model on the same images: what evaluation found, from the same score on.
    evaluated = json.loads((folder / "maskx" / "inference" / "coco_instances_results.json").read_text())
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
    with pytest.raises(ValueError, match=r"holds other things than an earlier demo: give a new folder"):
        demo.run_demo(tmp_path, host=None)
    assert (tmp_path / "dataset" / "precious.txt").read_text() == "mine"


def test_an_earlier_demo_is_replaced(tmp_path):
    demo._prepare(tmp_path)
    for name in ("dataset", "maskx"):
        (tmp_path / name).mkdir()
    (tmp_path / "results.json").write_text("{}")
    demo._prepare(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [".maskx_demo"]
