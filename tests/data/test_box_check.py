"""On a file with all masks, as ``maskx prepare shapes`` writes it."""

import copy
import json

import pytest

from maskx_d2.data.coco_file import read_coco_file
from maskx_d2.data.coco_remarks import find_problems
from maskx_d2.demo import shapes


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    dataset = shapes.generate(tmp_path_factory.mktemp("shapes"), num_train=12, num_test=1, seed=0)
    return json.loads(dataset.all_masks_json.read_text())


def xyxy(annotations):
    for annotation in annotations:
        x, y, width, height = annotation["bbox"]
        annotation["bbox"] = [x, y, x + width, y + height]


def next_ones(annotations):
    boxes = [annotation["bbox"] for annotation in annotations]
    for annotation, box in zip(annotations, [*boxes[1:], boxes[0]], strict=True):
        annotation["bbox"] = box


def divided(annotations):
    for annotation in annotations:
        annotation["bbox"] = [value / 128 for value in annotation["bbox"]]
        if isinstance(annotation["segmentation"], list):
            annotation["segmentation"] = [[v / 128 for v in p] for p in annotation["segmentation"]]
        else:
            annotation["segmentation"] = [[0, 0, 0.3, 0, 0.3, 0.3]]


def of_smaller_images(annotations):
    for annotation in annotations:
        annotation["bbox"] = [value / 2 for value in annotation["bbox"]]


def of_larger_images(annotations):
    for annotation in annotations:
        annotation["bbox"] = [value * 3 for value in annotation["bbox"]]
        annotation["segmentation"] = []


CASES = {
    xyxy: "the bbox seems to be x0, y0, x1, y1, expected x, y, width, height in pixels: [",
    next_ones: "the bbox seems to be that of annotation",
    divided: "they seem to be fractions of the image's size, expected pixels",
    of_larger_images: "boxes reach far outside their image, which seems to have been made smaller",
    of_smaller_images: "they seem to be of different objects or sizes of the image",
}


@pytest.mark.parametrize("change", CASES, ids=lambda change: change.__name__)
def test_boxes_that_are_not_of_their_masks_are_refused_with_the_likely_cause(tmp_path, content, change):
    changed = copy.deepcopy(content)
    change(changed["annotations"])
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match=r"truth.json: annotation \d+ has the bbox "):
        read_coco_file(path)
    errors = [problem for problem in find_problems(changed) if problem.is_error]
    assert any(CASES[change] in problem.detail for problem in errors)


def test_boxes_that_are_a_bit_loose_or_tight_are_fine(tmp_path, content):
    changed = copy.deepcopy(content)
    for number, annotation in enumerate(changed["annotations"]):
        x, y, width, height = annotation["bbox"]
        by = (-1, 0.5, 5, -0.4)[number % 4]
        annotation["bbox"] = [x - by, y - by, width + 2 * by, height + 2 * by]
    assert not [problem for problem in find_problems(changed) if problem.is_error]


def test_boxes_of_photographs_fit_their_masks(coco_mini):
    path = coco_mini / "annotations" / "instances_val2017.json"
    problems = list(find_problems(json.loads(path.read_text())))
    assert not [problem for problem in problems if problem.is_error]
