import numpy as np
import pytest

from maskx_d2.data.class_names import coco_class_names
from maskx_d2.data.class_splits import NAMED_SPLITS, classes_with_masks

VOC_INDICES = [*range(7), 8, *range(14, 20), 39, 56, 57, 58, 60, 62]


@pytest.fixture(scope="module")
def coco():
    return coco_class_names()


def test_coco_has_80_classes_and_voc_20_of_them(coco):
    assert len(set(coco)) == 80
    assert classes_with_masks("voc", coco) == VOC_INDICES
    assert [coco[i] for i in (0, 39, 62, 79)] == ["person", "bottle", "tv", "toothbrush"]


def test_coco_classes_are_those_of_the_annotation_file(coco, coco_mini):
    import json

    content = json.loads((coco_mini / "annotations" / "instances_val2017.json").read_text())
    categories = sorted(content["categories"], key=lambda c: c["id"])
    assert [c["name"] for c in categories] == coco


def test_all_and_nonvoc(coco):
    assert classes_with_masks("all", coco) == list(range(80))
    assert classes_with_masks("nonvoc", coco) == sorted(set(range(80)) - set(VOC_INDICES))


def test_random_splits_are_drawn_as_in_the_original_code(coco):
    np.random.seed(3)
    names = []
    for trial in range(1, 6):
        for size in (20, 30, 40, 50, 60):
            name = f"E{trial}_A{size}B{80 - size}"
            names.append(name)
            assert classes_with_masks(name, coco) == sorted(np.random.choice(80, size, replace=False)), name
    assert names == list(NAMED_SPLITS[4:])


def test_voc_goes_by_names_not_by_indices(coco):
    assert classes_with_masks("voc", coco[::-1]) == sorted(79 - i for i in VOC_INDICES)


def test_a_file_of_names(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("dog\n\n cat \n", encoding="utf-8")
    assert classes_with_masks(str(path), ["cat", "bird", "dog"]) == [0, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("dog\ncow\n", r"names 'cow', which the dataset's 3 classes do not include: cat, bird, dog"),
        ("dog\ndog\n", r"names 'dog' twice"),
        ("\n", r"gives masks to no class"),
        ("dog\ncat\nbird\n", r"gives masks to all 3 classes.*use 'all'"),
    ],
)
def test_a_file_that_does_not_fit_is_an_error_that_names_it(tmp_path, content, message):
    path = tmp_path / "names.txt"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=f"split file .*names.txt {message}"):
        classes_with_masks(str(path), ["cat", "bird", "dog"])


def test_a_split_of_other_classes_is_an_error():
    with pytest.raises(ValueError, match=r"split 'voc' names 'bicycle', .* and 14 more"):
        classes_with_masks("voc", ["person"])
    with pytest.raises(ValueError, match=r"split 'E2_A30B50' names"):
        classes_with_masks("E2_A30B50", ["person"])


def test_a_named_split_must_leave_something_on_both_sides(coco):
    voc = [coco[i] for i in VOC_INDICES]
    with pytest.raises(ValueError, match=r"split 'voc' gives masks to all 20 classes.*use 'all'"):
        classes_with_masks("voc", voc)
    with pytest.raises(ValueError, match=r"split 'nonvoc' gives masks to no class"):
        classes_with_masks("nonvoc", voc)
    assert classes_with_masks("all", voc) == list(range(20))


def test_neither_a_name_nor_a_file():
    with pytest.raises(FileNotFoundError, match=r"'E6_A20B60' is neither a file nor one of all, voc"):
        classes_with_masks("E6_A20B60", ["person"])
