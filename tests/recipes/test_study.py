"""``maskx cross-validate``, from the command line to the model that it leaves."""

import io
import json
import re
from contextlib import redirect_stdout

import pytest
import yaml

from maskx_d2.backends.load import load_detector
from maskx_d2.commands.main import main
from maskx_d2.inference.detector import KnownObjects
from maskx_d2.inference.masks_in_boxes import BoxesOfImage, find_masks
from tests.recipes.tiny import write_detector

OPTIONS = ["--folds", "2", "--steps", "10", "--channels", "8"]
RECIPES = ["--recipes", "class_agnostic", "maskx_box_supervised"]


def arguments(dataset, weights, output, *more):
    return [
        "cross-validate",
        *map(str, (dataset.train_json, dataset.train_images)),
        *("--weights", str(weights), "--output", str(output)),
        *OPTIONS,
        *(RECIPES if "--recipes" not in more else ()),
        *more,
    ]


@pytest.fixture(scope="module")
def run(dataset, checkpoint, tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "cv"
    with redirect_stdout(io.StringIO()) as printed:
        main(arguments(dataset, checkpoint, output, "--train"))
    (output / "printed.txt").write_text(printed.getvalue())
    return output


def test_a_report_the_figures_and_a_recipe_are_written(run):
    results = json.loads((run / "results.json").read_text())
    assert set(results["recipes"]) == {"class_agnostic", "maskx_box_supervised"}
    assert results["best"] in results["recipes"]
    assert len(results["folds"]) == 2
    page = (run / "report.html").read_text()
    assert "Expect masks of classes without masks" in page
    assert page.count("<svg") == 3 and page.count("data:image/jpeg") >= 4
    assert not re.search(r'src="(?!data:)|href="(?!#)', page)


def test_the_recipe_is_a_config_of_the_backend(run, checkpoint):
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    assert recipe["model"]["detector"] == str(checkpoint.resolve())
    assert recipe["trainer"]["max_steps"] == 10


def test_the_recipe_trains_a_model(run, dataset, tmp_path):
    config = [
        "--config",
        str(run / "recipe.yaml"),
        "--trainer.max_steps",
        "1",
        "--trainer.accelerator",
        "cpu",
    ]
    data = [
        *("--data.train_json", str(dataset.train_json), "--data.train_images", str(dataset.train_images)),
        *("--data.val_json", str(dataset.test_json), "--data.val_images", str(dataset.test_images)),
        *("--data.num_workers", "0", "--trainer.limit_val_batches", "0"),
    ]
    main(["torchvision", "fit", *config, *data, "--trainer.default_root_dir", str(tmp_path / "run")])
    assert (tmp_path / "run" / "model_final.ckpt").is_file()


def test_the_model_fills_masks_with_calibrated_scores(run, dataset):
    detector = load_detector(run / "model_final.ckpt")
    raw = load_detector(run / "model_final.ckpt")
    raw.calibration = None
    assert detector.calibration is not None
    content = json.loads(dataset.train_json.read_text())
    record = content["images"][0]
    objects = [a for a in content["annotations"] if a["image_id"] == record["id"]]
    boxes = [[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in objects)]
    of_image = BoxesOfImage(
        str(dataset.train_images / record["file_name"]),
        record["width"],
        record["height"],
        [a["id"] for a in objects],
        KnownObjects(boxes, [a["category_id"] for a in objects]),
    )
    (found,), (before,) = (list(find_masks(d, [of_image])) for d in (detector, raw))
    for box, a in zip(boxes, objects, strict=True):
        area = (box[2] - box[0]) * (box[3] - box[1])
        expected = detector.calibration([before.masks[a["id"]].score], [area])[0]
        assert found.masks[a["id"]].score == pytest.approx(expected)
        assert found.masks[a["id"]].rle == before.masks[a["id"]].rle


def test_the_expected_iou_of_objects_without_a_mask_is_the_mean_score_of_their_filled_masks(
    run, dataset, checkpoint, tmp_path
):
    printed = (run / "printed.txt").read_text()
    (number,), (iou,) = (
        re.findall(pattern, printed)
        for pattern in (r"masks of the (\d+) objects", r"mean IoU of ([\d.]+)\.$")
    )
    filled = tmp_path / "filled.json"
    weights = ["--weights", str(run / "model_final.ckpt"), "--output", str(filled)]
    main(["fill-masks", str(dataset.train_json), str(dataset.train_images), *weights])
    scores = [a["mask_score"] for a in json.loads(filled.read_text())["annotations"] if "mask_score" in a]
    assert int(number) == len(scores) > 10
    assert float(iou) == pytest.approx(sum(scores) / len(scores), abs=0.01)


def test_the_model_knows_which_classes_had_masks(run, dataset):
    style = load_detector(run / "model_final.ckpt").style
    content = json.loads(dataset.train_json.read_text())
    assert style.with_masks == {a["category_id"] for a in content["annotations"] if "segmentation" in a}


def test_the_same_command_again_trains_nothing(run, dataset, checkpoint, capfd, monkeypatch):
    monkeypatch.setattr("maskx_d2.recipes.cross_validation.train_mask_head", None)
    monkeypatch.setattr("maskx_d2.recipes.roi_cache._rois_of_image", None)
    main(arguments(dataset, checkpoint, run))
    assert "Best recipe" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--folds", "30"], r"--folds is 30, expected 2 to 1\d, the number of classes with masks"),
        (["--recipes", "magic"], r"--recipes names 'magic', expected some of class_agnostic, "),
        (["--device", "nowhere"], r"--device is 'nowhere', which torch cannot use"),
        (["--num-images", "4", "--folds", "4"], r"--folds is 4|classes|class has masks"),
        (["--steps", "11"], r"has results with schedule .*expected .*give another output folder"),
        (["--seed", "1"], r"is a cache of other|has results with seed 0, expected 1"),
    ],
)
def test_mistakes_end_with_one_sentence(run, dataset, checkpoint, more, message, capfd):
    with pytest.raises(SystemExit) as exit_info:
        main(arguments(dataset, checkpoint, run, *more))
    assert exit_info.value.code == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("maskx: ")]
    assert len(lines) == 1 and re.search(message, lines[0])


@pytest.mark.parametrize("masks", ["none", "of one class"])
def test_without_two_classes_with_masks_there_is_nothing_to_hide(
    masks,
    dataset,
    checkpoint,
    tmp_path,
    capfd,
):
    content = json.loads(dataset.train_json.read_text())
    kept = next(a["category_id"] for a in content["annotations"] if "segmentation" in a)
    for a in content["annotations"]:
        if masks == "none" or a["category_id"] != kept:
            a.pop("segmentation", None)
    path = tmp_path / "train.json"
    path.write_text(json.dumps(content))
    with pytest.raises(SystemExit):
        main(["cross-validate", str(path), str(dataset.train_images), "--weights", str(checkpoint),
              "--output", str(tmp_path / "cv"), *OPTIONS])  # fmt: skip
    assert re.search(r"no class has masks|only one class has masks", capfd.readouterr().err)
    assert not (tmp_path / "cv" / "cache").exists()


def test_a_detector_of_other_classes_is_refused(dataset, tmp_path, capfd):
    other = write_detector(tmp_path / "other.ckpt", [{"id": 1, "name": "unicorn"}, {"id": 2, "name": "b"}])
    with pytest.raises(SystemExit):
        main(arguments(dataset, other, tmp_path / "cv"))
    assert "has other classes than the model" in capfd.readouterr().err
