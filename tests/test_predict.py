import json

import numpy as np
import pytest
from PIL import Image

from maskx_d2 import predict as predict_module
from maskx_d2.evaluation.pictures import ClassStyle
from maskx_d2.predict import find_images, predict


def test_images_of_a_folder_are_found_in_order(tmp_path):
    for name in ("b.jpg", "a.PNG", "c.txt"):
        (tmp_path / name).touch()
    (tmp_path / "below").mkdir()
    assert [p.name for p in find_images([tmp_path, tmp_path / "c.txt"])] == ["a.PNG", "b.jpg", "c.txt"]


class Detector:
    """Finds five names on one region and forty small things, whatever the image."""

    def __init__(self, num_classes):
        self.style = ClassStyle(names={i: f"name {i}" for i in range(num_classes)}, with_masks=frozenset())

    def detect(self, image, image_id):
        region = [
            {"bbox": [10, 10 + i / 10, 60, 60], "score": 0.9 - i / 100, "category_id": i} for i in range(5)
        ]
        things = [
            {"bbox": [4 * i, 100, 3, 3], "score": 0.5 + i / 1000, "category_id": 7} for i in range(40)
        ]
        return [{**d, "image_id": image_id} for d in things + region]


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
