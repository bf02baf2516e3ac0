from collections import Counter

import pytest

from maskx_d2.data.class_names import (
    coco_class_names,
    indices_in,
    readable_visual_genome_class_names,
    visual_genome_class_names,
)
from maskx_d2.data.class_splits import classes_with_masks

from ..conftest import SHARED_DATA


def test_the_list_of_visual_genome_is_the_originals():
    names = visual_genome_class_names()
    assert len(names) == 3001
    assert (names[0], names[10], names[62], names[80], names[-1]) == (
        "person", "water_faucet", "television", names[80], "zucchini",
    )  # fmt: skip
    reference = SHARED_DATA / "vg3k_class_names.txt"
    if not reference.is_file():
        pytest.skip("the original's list is not beside this checkout")
    assert names == reference.read_text().split()


def test_behind_cocos_classes_it_is_sorted():
    rest = visual_genome_class_names()[80:]
    assert rest == sorted(rest, key=lambda name: f"{name}.n.01")


def test_for_people_cocos_classes_have_cocos_names_and_no_name_has_underscores():
    readable = readable_visual_genome_class_names()
    assert readable[:80] == coco_class_names()
    assert not any("_" in name for name in readable) and len(readable) == 3001
    assert readable[80:] == [name.replace("_", " ") for name in visual_genome_class_names()[80:]]


def test_the_split_coco_gives_masks_to_the_first_80():
    readable = readable_visual_genome_class_names()
    # Other classes have the name of one of COCO's, too: the first is COCO's.
    assert any(Counter(readable)[name] > 1 for name in coco_class_names())
    assert classes_with_masks("coco", readable) == list(range(80))
    voc = classes_with_masks("voc", readable)
    assert len(voc) == 20 and max(voc) < 80


def test_names_are_found_in_their_order():
    assert indices_in(["a", "b", "c", "b"], ["c", "b", "a"], what="x") == [2, 1, 0]
    with pytest.raises(ValueError, match=r"^class list x.txt names 'd', which the dataset's 2 classes do"):
        indices_in(["a", "b"], ["a", "d"], what="class list x.txt")
