import json
import pickle

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from PIL import Image

import maskx_d2
from maskx_d2.backends.torchvision.predict import TorchvisionDetector
from maskx_d2.backends.torchvision.training import TrainingModule
from maskx_d2.commands import main as cli
from maskx_d2.inference.detector import KnownObjects

from ...data import awkward
from ...inference import test_video
from ...inference.precision import assert_nearly_the_same_in_half_precision
from . import tiny


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Of an untrained model that finds something everywhere."""
    torch.manual_seed(0)
    options = {
        **tiny.MODEL,
        "class_names": ["cat", "dog", "cow", "hen"],
        "category_ids": [3, 5, 7, 9],
        "classes_with_masks": [0, 2],
        "box_score_thresh": 0.0,
    }
    module = TrainingModule(**options)
    path = tmp_path_factory.mktemp("model") / "model.ckpt"
    torch.save({"state_dict": module.state_dict(), "hyper_parameters": options}, path)
    return path


def test_detections_are_those_of_the_model_in_coco_format(checkpoint):
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    detector = TorchvisionDetector(checkpoint)
    assert detector.style.names == {3: "cat", 5: "dog", 7: "cow", 9: "hen"}
    assert detector.style.with_masks == {3, 7}
    results = detector.coco_results([Image.fromarray(pixels)], [42])[0]
    image = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    with torch.no_grad():
        (expected,) = TrainingModule.from_checkpoint(checkpoint).model.eval()([image])
    assert len(results) == len(expected["boxes"]) > 5
    for result, box, label, score in zip(
        results, expected["boxes"], expected["labels"], expected["scores"], strict=True
    ):
        x0, y0, x1, y1 = box.tolist()
        assert result["bbox"] == pytest.approx([x0, y0, x1 - x0, y1 - y0], abs=1e-4)
        assert result["category_id"] == [3, 5, 7, 9][label - 1]
        assert result["score"] == pytest.approx(score.item())
        assert result["image_id"] == 42 and result["segmentation"]["size"] == [70, 90]


def test_detections_for_python_are_those_in_coco_format(checkpoint, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "1.png")
    detector = maskx_d2.load_detector(checkpoint)
    results = detector.coco_results([Image.fromarray(pixels)], [1])[0]
    scores = sorted((r["score"] for r in results), reverse=True)
    results = [r for r in results if r["score"] >= scores[5]]
    for image in (tmp_path / "1.png", str(tmp_path / "1.png"), Image.fromarray(pixels)):
        found = detector.detect(image, min_score=scores[5])
        assert len(found) == len(results) == 6
        assert found.class_id.tolist() == [r["category_id"] for r in results]
        assert found["class_name"].tolist() == [detector.style.names[r["category_id"]] for r in results]
        assert found["trained_with_masks"].tolist() == [r["category_id"] in (3, 7) for r in results]
        for box, mask, score, result in zip(found.xyxy, found.mask, found.confidence, results, strict=True):
            x, y, width, height = result["bbox"]
            assert box.tolist() == pytest.approx([x, y, x + width, y + height])
            assert score == result["score"]
            assert np.array_equal(mask, mask_util.decode(result["segmentation"]))
    nothing = detector.detect(Image.fromarray(pixels), min_score=1)
    assert len(nothing) == 0 and nothing.xyxy.shape == (0, 4)


def known(results):
    """Boxes and classes of detections."""
    boxes = [[x, y, x + width, y + height] for x, y, width, height in (r["bbox"] for r in results)]
    return KnownObjects(boxes, [r["category_id"] for r in results])


def test_masks_in_the_boxes_of_detections_are_those_of_the_detections(checkpoint):
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (h, 90, 3), dtype=np.uint8)) for h in (70, 110)]
    detector = TorchvisionDetector(checkpoint)
    detections = [detector.coco_results([image], [1])[0] for image in images]
    # One image at a time, as they were detected: a batch is as large as the largest image in it.
    for image, expected in zip(images, detections, strict=True):
        (masks,) = detector.masks_in_boxes([image], [known(expected)])
        assert len(masks) == len(expected) > 5
        for mask, detection in zip(masks, expected, strict=True):
            areas = mask_util.area(mask.rle), mask_util.area(detection["segmentation"])
            assert mask_util.iou([mask.rle], [detection["segmentation"]], [0]) > 0.97 or max(areas) == 0
            assert 0 <= mask.score <= 1
    together = detector.masks_in_boxes(images, list(map(known, detections)))
    assert [len(masks) for masks in together] == [len(of_image) for of_image in detections]


def test_a_model_without_a_mask_head_fills_no_masks(tmp_path):
    options = {**tiny.MODEL, "class_names": ["cat", "dog", "cow", "hen"], "category_ids": [3, 5, 7, 9]}
    options |= {"classes_with_masks": [0, 2], "predictor": None}
    module = TrainingModule(**options)
    torch.save({"state_dict": module.state_dict(), "hyper_parameters": options}, tmp_path / "detector.ckpt")
    detector = TorchvisionDetector(tmp_path / "detector.ckpt")
    with pytest.raises(ValueError, match="the model has no mask head"):
        detector.masks_in_boxes([Image.new("RGB", (64, 64))], [KnownObjects([[1.0, 1.0, 9.0, 9.0]], [3])])


def test_the_command_fills_masks(checkpoint, tmp_path, capsys):
    path = awkward.write(tmp_path)
    content = json.loads(path.read_text())
    for category, name in zip(content["categories"], ("cat", "dog"), strict=True):
        category["name"] = name
    for annotation in content["annotations"]:
        annotation.pop("segmentation", None)
    path.write_text(json.dumps(content))
    out = tmp_path / "filled.json"
    words = ["fill-masks", str(path), str(tmp_path), "--weights", str(checkpoint), "--output", str(out)]
    cli.main([*words, "--format", "polygon", "--batch-size", "2"])
    assert f"{out}: " in capsys.readouterr().out
    filled = json.loads(out.read_text())
    assert any(a.get("segmentation_source") == "predicted" for a in filled["annotations"])
    with pytest.raises(SystemExit) as stopped:
        cli.main([*words[:-1], str(path)])
    assert stopped.value.code == 2 and "would overwrite its input" in capsys.readouterr().err
    next(tmp_path.glob("*.png")).unlink()
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    assert stopped.value.code == 1 and "maskx: skipped 1 file:" in capsys.readouterr().err


def test_in_half_precision_masks_are_nearly_those_of_full_precision(checkpoint):
    detector = TorchvisionDetector(checkpoint).to("cpu")
    assert_nearly_the_same_in_half_precision(detector, category_id=3)


def test_sent_to_another_process_as_by_ray_it_finds_the_same(checkpoint):
    detector = TorchvisionDetector(checkpoint)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8))
    expected = detector.coco_results([image], [1])
    assert expected[0] and pickle.loads(pickle.dumps(detector)).coco_results([image], [1]) == expected


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:x", "nonsense"])
def test_a_cluster_that_is_not_there_is_named_before_anything_is_written(
    checkpoint, tmp_path, capsys, address
):
    Image.new("RGB", (70, 90)).save(tmp_path / "1.png")
    words = ["predict", str(tmp_path), "--weights", str(checkpoint), "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stopped:
        cli.main([*words, "--ray", address])
    assert stopped.value.code == 2 and address in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command_draws_and_writes_what_is_found(checkpoint, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name in ("a.jpg", "b.PNG"):
        Image.fromarray(rng.integers(0, 256, (70, 90, 3), dtype=np.uint8)).save(tmp_path / name)
    out = tmp_path / "out"
    cli.main(
        ["predict", "--weights", str(checkpoint), str(tmp_path), "--output", str(out), "--min-score", "0.1"]
    )
    assert sorted(p.name for p in out.glob("*.png")) == ["a.png", "b.png"]
    results = json.loads((out / "coco_instances_results.json").read_text())
    assert {r["file_name"] for r in results} == {"a.jpg", "b.PNG"}
    assert all(r["score"] >= 0.1 for r in results)
    assert "2 pictures in" in capsys.readouterr().out


def test_the_command_takes_folders_of_images_and_videos(checkpoint, tmp_path, capsys):
    folder, out = tmp_path / "in", tmp_path / "out"
    (folder / "below").mkdir(parents=True)
    Image.new("RGB", (90, 70)).save(folder / "a.png")
    test_video.write(folder / "below" / "b.avi", frames=3)
    (folder / "below" / "broken.mp4").write_text("no video")
    words = ["predict", "--weights", str(checkpoint), str(folder), "--output", str(out), "--min-score=0.1"]
    with pytest.raises(SystemExit) as stopped:
        cli.main([*words, "--recursive", "--every", "2", "--batch-size", "2"])
    printed = capsys.readouterr()
    assert stopped.value.code == 1 and "broken.mp4 cannot be read as a video" in printed.err
    assert f"{out / 'b.mp4'}, detections of its frames in {out / 'b.jsonl'}" in printed.out
    assert "1 pictures in" in printed.out
    assert sorted(p.name for p in out.iterdir()) == [
        *("a.png", "b.jsonl", "b.mp4", "coco_instances_results.json", "log.txt")
    ]
    assert [json.loads(line)["frame"] for line in (out / "b.jsonl").read_text().splitlines()] == [0, 2]
    test_video.write(folder / "b.mp4", frames=1)
    with pytest.raises(SystemExit) as stopped:
        cli.main([*words, "--recursive"])
    assert stopped.value.code == 2 and "2 videos are named 'b', expected one" in capsys.readouterr().err


def test_an_image_is_not_overwritten_by_its_picture(checkpoint, tmp_path, capsys):
    image = tmp_path / "image.png"
    Image.new("RGB", (64, 64)).save(image)
    before = image.read_bytes()
    with pytest.raises(SystemExit):
        cli.main(["predict", "--weights", str(checkpoint), str(tmp_path), "--output", str(tmp_path)])
    assert "image.png: give another --output" in capsys.readouterr().err
    assert image.read_bytes() == before


class Harmful:
    def __reduce__(self):
        return open, ("harm", "w")


def test_users_mistakes_end_with_one_sentence(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64)).save("image.png")
    for name in ("weights.pth", "text.ckpt"):
        (tmp_path / name).write_text("no checkpoint")
    torch.save({"state_dict": {}}, "other.ckpt")
    torch.save([1], "list.ckpt")
    (tmp_path / "empty.ckpt").touch()
    content = torch.load(checkpoint, weights_only=True)
    torch.save({**content, "hyper_parameters": {"a": 1}}, "strange.ckpt")
    torch.save({"state_dict": Harmful()}, "bad.ckpt")
    cases = [
        (
            ["weights.pth"],
            "--weights weights.pth is not a .ckpt of the torchvision backend, expected --config-file",
        ),
        (["absent.ckpt"], "--weights absent.ckpt is not a file"),
        (["text.ckpt"], "checkpoint text.ckpt is refused"),
        (["other.ckpt"], "checkpoint other.ckpt has no 'hyper_parameters', expected one written by"),
        (["list.ckpt"], "checkpoint list.ckpt holds a list, expected a dictionary"),
        (["bad.ckpt"], "checkpoint bad.ckpt is refused"),
        (["empty.ckpt"], "checkpoint empty.ckpt is refused: "),
        (["strange.ckpt"], "checkpoint strange.ckpt is of another model, expected one written by"),
        ([str(checkpoint), "--opts", "A", "1"], "--opts are config keys, expected --config-file too"),
    ]
    for (weights, *more), message in cases:
        with pytest.raises(SystemExit) as stopped:
            cli.main(["predict", "image.png", "--output", "out", "--weights", weights, *more])
        assert stopped.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("maskx: ") and message in line
    with pytest.raises(SystemExit):
        cli.main(["predict", "image.png", "--output", "text.ckpt", "--weights", str(checkpoint)])
    assert capsys.readouterr().err == "maskx: text.ckpt is not a folder\n"
    (tmp_path / "broken.png").write_text("no image")
    with pytest.raises(SystemExit):
        cli.main(["predict", "broken.png", "--output", "out", "--weights", str(checkpoint)])
    assert "broken.png cannot be read as an image" in capsys.readouterr().err
    assert not (tmp_path / "harm").exists() and not (tmp_path / "out").exists()
