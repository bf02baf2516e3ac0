import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image
from pycocotools.coco import COCO

from maskx_d2.app.results import Choice, choose, coco_json, picture, summary, table
from maskx_d2.evaluation.pictures import BOXES_ONLY_COLOUR, WITH_MASKS_COLOUR, ClassStyle

STYLE = ClassStyle(names={3: "Dog", 5: "hot dog", 9: "cat"}, with_masks=frozenset({3, 9}))
WIDTH, HEIGHT = 40, 30


def detection(category_id, score, x, *, masked=True):
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    pixels[5:15, x : x + 4] = 1
    rle = mask_util.encode(pixels)
    found = {"image_id": 1, "category_id": category_id, "score": score, "bbox": [x, 5.0, 4.0, 10.0]}
    return found | ({"segmentation": {**rle, "counts": rle["counts"].decode()}} if masked else {})


FOUND = [
    detection(5, 0.6, 0),
    detection(3, 0.9, 10),
    detection(9, 0.4, 20),
    detection(9, 0.8, 30, masked=False),
]


@pytest.mark.parametrize(
    ("choice", "scores"),
    [
        (Choice(), [0.9, 0.8, 0.6]),
        (Choice(min_score=0.4), [0.9, 0.8, 0.6, 0.4]),
        (Choice(min_score=0, most=2), [0.9, 0.8]),
        (Choice(class_name=" DOG "), [0.9, 0.6]),
        (Choice(class_name="dog", most=1), [0.9]),
        (Choice(class_name="horse"), []),
        (Choice(side="A", min_score=0), [0.9, 0.8, 0.4]),
        (Choice(side="B"), [0.6]),
    ],
)
def test_what_is_chosen_by_score_number_name_and_side(choice, scores):
    assert [d["score"] for d in choose(FOUND, STYLE, choice)] == scores


def test_the_list_has_name_score_side_and_area():
    assert table(choose(FOUND, STYLE, Choice()), STYLE) == [
        ["Dog", "90%", "masks", 40, "3.3%"],
        ["cat", "80%", "masks", "-", "-"],
        ["hot dog", "60%", "boxes only", 40, "3.3%"],
    ]
    assert summary(FOUND, choose(FOUND, STYLE, Choice()), STYLE) == (
        "Shown: 2 of classes trained with masks, 1 of classes with boxes only. Not shown: 1."
    )


def test_the_picture_has_both_colours_and_a_size_to_look_at():
    image = Image.new("RGB", (WIDTH, HEIGHT))
    drawn = picture(image, FOUND, STYLE)
    assert drawn.width == 640 and drawn.height > 480
    colours = {colour for _, colour in drawn.getcolors(2**20)}
    assert {WITH_MASKS_COLOUR, BOXES_ONLY_COLOUR} <= colours
    assert picture(Image.new("RGB", (3200, 1600)), [], STYLE).width == 1600
    assert picture(Image.new("RGB", (900, 700)), [], STYLE).width == 900


def test_pycocotools_reads_the_same_objects_out_of_the_json(tmp_path):
    content = coco_json(FOUND, STYLE, file_name="a.png", size=(WIDTH, HEIGHT))
    (tmp_path / "found.json").write_text(json.dumps(content))
    coco = COCO(str(tmp_path / "found.json"))
    assert coco.imgs == {1: {"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}}
    assert {c["id"]: c["name"] for c in coco.loadCats(coco.getCatIds())} == STYLE.names
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=[1]))
    assert [a["score"] for a in annotations] == [d["score"] for d in FOUND]
    for annotation, found in zip(annotations, FOUND, strict=True):
        assert (annotation["category_id"], annotation["bbox"]) == (found["category_id"], found["bbox"])
        assert annotation["area"] == 40
        if "segmentation" in found:
            mask = coco.annToMask(annotation)
            assert mask.shape == (HEIGHT, WIDTH) and mask.sum() == 40
            assert mask[5:15, int(found["bbox"][0])].all()
