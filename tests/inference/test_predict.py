import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from maskx_d2.evaluation.pictures import ClassStyle
from maskx_d2.evaluation.run_files import DETECTIONS_FILE
from maskx_d2.inference import predict as predict_module
from maskx_d2.inference.predict import (
    UNFINISHED_FILE,
    IdsOfFile,
    file_names,
    find_images,
    find_other_files,
    image_ids,
    predict,
)


def test_images_of_a_folder_are_found_in_order(tmp_path):
    for name in ("b.jpg", "a.PNG", "c.txt"):
        (tmp_path / name).touch()
    (tmp_path / "below").mkdir()
    assert [p.name for p in find_images([tmp_path, tmp_path / "c.txt"])] == ["a.PNG", "b.jpg", "c.txt"]


class Detector:
    """Finds five names on one region and forty small things, whatever the image."""

    def __init__(self, num_classes):
        self.style = ClassStyle(names={i: f"name {i}" for i in range(num_classes)}, with_masks=frozenset())

    def coco_results(self, images, image_ids):
        return [self.of_image(image_id) for image_id in image_ids]

    def of_image(self, image_id):
        region = [
            {"bbox": [10, 10 + i / 10, 60, 60], "score": 0.9 - i / 100, "category_id": i} for i in range(5)
        ]
        things = [
            {"bbox": [4 * i, 100, 3, 3], "score": 0.5 + i / 1000, "category_id": 7} for i in range(40)
        ]
        return [{**d, "image_id": image_id} for d in things + region]


def images(folder, count):
    folder.mkdir()
    for i in range(1, count + 1):
        Image.new("RGB", (60, 50)).save(folder / f"{i}.png")
    return folder


def test_images_that_cannot_be_read_are_passed_over_and_the_others_are_done(tmp_path):
    folder = images(tmp_path / "in", 4)
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:50])
    (folder / "4.png").unlink()
    os.mkfifo(folder / "4.png")
    failed = {}
    results = predict(
        Detector(10),
        find_images([folder]),
        tmp_path / "out",
        passed_over=lambda path, error: failed.update({path.name: str(error)}),
    )
    assert set(failed) == {"2.png", "4.png"}
    assert "2.png cannot be read as an image: " in failed["2.png"]
    assert {d["image_id"] for d in json.loads(results.read_text())} == {1, 3}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["1.png", "3.png", DETECTIONS_FILE]


class Stopping(Detector):
    """Is interrupted at the third image."""

    def of_image(self, image_id):
        if image_id == 3:
            raise KeyboardInterrupt
        return super().of_image(image_id)


def test_what_was_done_before_an_interruption_stays_and_nothing_older_is_beside_it(tmp_path):
    folder = images(tmp_path / "in", 4)
    predict(Detector(10), [folder / "4.png"], tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        predict(Stopping(10), find_images([folder]), tmp_path / "out")
    assert not (tmp_path / "out" / DETECTIONS_FILE).exists()
    _, *lines = (tmp_path / "out" / UNFINISHED_FILE).read_text().splitlines()
    assert [{d["image_id"] for d in json.loads(line)["detections"]} for line in lines] == [{1}, {2}]
    predict(Detector(10), find_images([folder]), tmp_path / "out")
    assert (tmp_path / "out" / DETECTIONS_FILE).exists()
    assert not (tmp_path / "out" / UNFINISHED_FILE).exists()


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_run_that_goes_on_does_what_is_left_and_ends_with_the_same_file(tmp_path, batch_size):
    folder = find_images([images(tmp_path / "in", 7)])
    expected = predict(Detector(10), folder, tmp_path / "through").read_text()
    with pytest.raises(KeyboardInterrupt):
        predict(Stopping(10), folder, tmp_path / "out", model="a")
    before = (tmp_path / "out" / "1.png").stat().st_mtime_ns
    for changed in ({"model": "b"}, {"model": "a", "min_score": 0.1}):
        with pytest.raises(
            ValueError, match=r"results.jsonl belongs to a run with other inputs or options"
        ):
            predict(Detector(10), folder, tmp_path / "out", resume=True, **changed)
    seen = []
    results = predict(
        Detector(10),
        folder,
        tmp_path / "out",
        model="a",
        batch_size=batch_size,
        resume=True,
        progress=lambda paths: seen.append(len(paths)) or paths,
    )
    assert seen == [5] and results.read_text() == expected
    assert (tmp_path / "out" / "1.png").stat().st_mtime_ns == before
    assert len(list((tmp_path / "out").glob("*.png"))) == 7
    # Without it everything is done again.
    with pytest.raises(KeyboardInterrupt):
        predict(Stopping(10), folder, tmp_path / "out", model="a")
    assert predict(Detector(10), folder, tmp_path / "out").read_text() == expected


def test_folders_below_are_looked_into_if_asked_for(tmp_path):
    images(tmp_path / "in", 2)
    images(tmp_path / "in" / "below", 1)
    assert len(find_images([tmp_path / "in"])) == 2
    found = find_images([tmp_path / "in"], recursive=True)
    assert [str(p.relative_to(tmp_path / "in")) for p in found] == ["1.png", "2.png", "below/1.png"]


def test_without_detections_the_file_is_an_empty_list(tmp_path):
    folder = find_images([images(tmp_path / "in", 2)])
    assert json.loads(predict(Detector(10), folder, tmp_path / "out", min_score=0.99).read_text()) == []


def test_a_link_where_a_picture_should_be_ends_it_before_anything_is_written(tmp_path):
    folder = images(tmp_path / "in", 2)
    (tmp_path / "kept").write_text("kept")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "2.png").symlink_to(tmp_path / "kept")
    with pytest.raises(ValueError, match=r"2.png is a link, expected a file or nothing"):
        predict(Detector(10), find_images([folder]), tmp_path / "out")
    assert (tmp_path / "kept").read_text() == "kept"
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["2.png"]


@pytest.fixture
def drawn(monkeypatch):
    """What is drawn of each image."""
    calls = []

    def draw(image, detections, style):
        calls.append(detections)
        return image

    monkeypatch.setattr(predict_module, "draw_detections", draw)
    return calls


@pytest.mark.parametrize(
    ("num_classes", "options", "count", "others"),
    [
        (100, {}, 45, 0),
        (101, {}, 30, 4),
        (101, {"top": 3}, 3, 4),
        (101, {"merge_iou": 1}, 30, 0),
        (101, {"top": 99}, 41, 4),
        (10, {"top": 7}, 7, 0),
        (10, {"merge_iou": 0.8}, 41, 4),
    ],
)
def test_of_many_classes_the_best_are_drawn_and_one_name_for_a_region(
    tmp_path, drawn, num_classes, options, count, others
):
    Image.fromarray(np.zeros((120, 200, 3), np.uint8)).save(tmp_path / "1.png")
    results = predict(Detector(num_classes), [tmp_path / "1.png"], tmp_path / "out", **options)
    (of_image,) = drawn
    assert len(of_image) == count
    assert max(of_image, key=lambda d: d["score"]).get("others", 0) == others
    assert len(json.loads(results.read_text())) == 45


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"place": 7}, "it has image number 7 twice, or there is no such image"),
        ({"place": -1}, "it has image number -1 twice"),
        ({"place": 1, "detections": []}, "it has image number 1 twice"),
        ({"place": "0"}, "a run with other inputs or options: delete it"),
        ({"detections": None}, "Expected `array`, got `null`"),
        ({"score": -0.5}, r"Expected `float` >= 0.* - at `\$.detections\[0\].score`"),
        ({"score": 1.5}, "Expected `float` <= 1"),
        ({"score": "nan"}, "Expected `float`, got `str`"),
        ({"image_id": 9}, "a detection of image_id 9 and category_id 7 in image 1"),
        ({"category_id": 77}, "a detection of image_id 1 and category_id 77 in image 1"),
        ({"bbox": [1, 2, 3]}, "Expected `array` of length >= 4"),
        ({"segmentation": {"size": [40, 60], "counts": "0"}}, "counts do not add up to 40 x 60 pixels"),
        ({"segmentation": {"size": [40], "counts": "0"}}, "Expected `array` of length >= 2"),
    ],
)
def test_a_journal_that_this_command_cannot_have_written_is_named(tmp_path, changed, message):
    folder = find_images([images(tmp_path / "in", 4)])
    with pytest.raises(KeyboardInterrupt):
        predict(Stopping(10), folder, tmp_path / "out")
    path = tmp_path / "out" / UNFINISHED_FILE
    first, second, *others = path.read_text().splitlines()
    piece = json.loads(second)
    assert piece["detections"][0].items() >= {"image_id": 1, "category_id": 7}.items()
    target = piece if changed.keys() <= piece.keys() else piece["detections"][0]
    target |= changed
    path.write_text("\n".join([first, json.dumps(piece), *others, ""]))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=rf"{UNFINISHED_FILE} .*{message}"):
        predict(Detector(10), folder, tmp_path / "out", resume=True)
    assert path.read_bytes() == before


# ---- Names and ids ----


def test_names_are_relative_to_the_folder_that_holds_all_images(tmp_path):
    images(tmp_path / "a", 1)
    images(tmp_path / "b", 1)
    found = find_images([tmp_path], recursive=True)
    assert file_names(found, [tmp_path]) == ["a/1.png", "b/1.png"]
    both = [tmp_path / "a", tmp_path / "b"]
    assert file_names(find_images(both), both) == ["a/1.png", "b/1.png"]
    assert file_names(find_images(both[:1]), both[:1]) == ["1.png"]
    one = [tmp_path / "a" / "1.png"]
    assert file_names(find_images(one), one) == ["1.png"]
    results = predict(Detector(10), found, tmp_path / "out", names=["a/1.png", "b/1.png"])
    assert {d["file_name"] for d in json.loads(results.read_text())} == {"a/1.png", "b/1.png"}


def annotation_file(path, names, categories):
    content = {
        "images": [{"id": 70 + i, "file_name": n, "width": 20, "height": 20} for i, n in enumerate(names)],
        "categories": [{"id": i, "name": name} for i, name in categories.items()],
    }
    path.write_text(json.dumps(content))
    return path


def test_ids_are_taken_from_an_annotation_file_and_pycocotools_evaluates_the_results(tmp_path):
    folder = images(tmp_path / "in", 3)
    found = find_images([folder])
    names = file_names(found, [folder])
    style = Detector(10).style
    categories = {500 - i: name for i, name in style.names.items()}
    path = annotation_file(tmp_path / "truth.json", ["2.png", "folder/3.png"], categories)
    ids = IdsOfFile.read(path, names, style)
    assert ids.image_ids == [None, 70, 71]
    results = predict(
        Detector(10), found[1:], tmp_path / "out", ids=ids.image_ids[1:], category_ids=ids.category_ids
    )
    written = json.loads(results.read_text())
    assert {d["image_id"] for d in written} == {70, 71}
    assert {d["category_id"] for d in written} <= set(categories)
    truth = read_coco_without_annotations(path)
    truth.loadRes(str(results))
    with pytest.raises(ValueError, match=r"truth.json has none of 1 images, such as other.png"):
        IdsOfFile.read(path, ["other.png"], style)
    other = annotation_file(tmp_path / "other.json", ["2.png"], {1: "unicorn"})
    with pytest.raises(ValueError, match=r"other.json has other classes than the model: it lacks"):
        IdsOfFile.read(other, names, style)


def read_coco_without_annotations(path):
    coco = COCO()
    coco.dataset = {**json.loads(path.read_text()), "annotations": [], "info": {}}
    coco.createIndex()
    return coco


def test_ids_that_are_too_large_are_places(tmp_path):
    numbers = ["12345678901234567890", "12345678901234567891"]
    assert image_ids([Path(f"{number}.png") for number in numbers]) == [1, 2]
    assert image_ids([Path("7.png"), Path("9.png")]) == [7, 9]


@pytest.mark.parametrize("length", [236, 239, 251])
def test_very_long_names_have_shorter_pictures(tmp_path, length):
    folder = images(tmp_path / "in", 1)
    for name in (
        "a" * length,
        "a" * (length - 1) + "b",
        "ü" * (length // 2),
        "ü" * (length // 2 - 1) + "b",
    ):
        (folder / f"{name}.png").write_bytes((folder / "1.png").read_bytes())
    found = find_images([folder])
    results = predict(Detector(10), found, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.png"))) == len(found) == 5
    assert {d["file_name"] for d in json.loads(results.read_text())} == {p.name for p in found}


def test_other_files_of_a_folder_are_named(tmp_path):
    folder = images(tmp_path / "in", 1)
    for name in ("notes.txt", "a.heic", ".hidden", "b.jfif"):
        (folder / name).write_bytes(b"x")
    assert [p.name for p in find_other_files([folder])] == ["a.heic", "notes.txt"]
    assert [p.name for p in find_images([folder])] == ["1.png", "b.jfif"]
