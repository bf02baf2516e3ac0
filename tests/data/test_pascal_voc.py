"""``maskx prepare voc`` on a small tree in the layout of PASCAL VOC."""

import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image

from maskx_d2.commands.main import main
from maskx_d2.data.coco_file import read_coco_file
from maskx_d2.data.pascal_voc import VOC_CLASSES, convert_pascal_voc

PALETTE = [value for index in range(256) for value in (index, index // 2, 255 - index)]


def write_image(root, name, objects, *, instances=None, classes=None, size=(60, 40)):
    """``objects``: (class, x0, y0, x1, y1, difficult), pixels counted from 1 as in VOC."""
    Image.new("RGB", size, (90, 120, 30)).save(root / "JPEGImages" / f"{name}.jpg")
    text = "".join(
        f"<object><name>{c}</name><difficult>{d}</difficult><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin>"
        f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for c, x0, y0, x1, y1, d in objects
    )
    (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{text}</annotation>")
    for folder, indices in (("SegmentationObject", instances), ("SegmentationClass", classes)):
        if indices is not None:
            image = Image.fromarray(indices.astype(np.uint8), mode="P")
            image.putpalette(PALETTE)
            image.save(root / folder / f"{name}.png")


@pytest.fixture
def voc(tmp_path):
    root = tmp_path / "VOC2012"
    for folder in ("Annotations", "JPEGImages", "SegmentationClass", "SegmentationObject"):
        (root / folder).mkdir(parents=True)
    for task, lists in {
        "Main": {"trainval": "boxes_only\nmasks_train\n"},
        "Segmentation": {"train": "masks_train\n", "val": "masks_val\n"},
    }.items():
        (root / "ImageSets" / task).mkdir(parents=True)
        for name, text in lists.items():
            (root / "ImageSets" / task / f"{name}.txt").write_text(text)
    write_image(root, "boxes_only", [("cat", 1, 1, 10, 20, 0), ("dog", 5, 6, 30, 40, 1)])
    # The order of the masks is not that of the objects, and two objects are of one class.
    instances, classes = np.zeros((40, 60)), np.zeros((40, 60))
    instances[10:21, 30:51], classes[10:21, 30:51] = 255, 255
    instances[11:20, 31:50], classes[11:20, 31:50] = 1, 1 + VOC_CLASSES.index("cow")
    instances[2:9, 3:13], classes[2:9, 3:13] = 2, 1 + VOC_CLASSES.index("cow")
    instances[25:39, 5:25], classes[25:39, 5:25] = 3, 1 + VOC_CLASSES.index("person")
    objects = [
        ("person", 6, 26, 25, 39, 1),
        ("cow", 4, 3, 13, 9, 0),
        ("cow", 31, 11, 51, 21, 0),
    ]
    for name in ("masks_train", "masks_val"):
        write_image(root, name, objects, instances=instances, classes=classes)
    return root


def test_boxes_and_masks_are_those_of_voc(voc, tmp_path):
    summary = convert_pascal_voc(voc, tmp_path)
    train = json.loads((tmp_path / "voc_train.json").read_text())
    assert [image["file_name"] for image in train["images"]] == ["boxes_only.jpg", "masks_train.jpg"]
    by_image = {1: [], 2: []}
    for record in train["annotations"]:
        by_image[record["image_id"]].append(record)
    assert [record["bbox"] for record in by_image[1]] == [[0, 0, 10, 20], [4, 5, 26, 35]]
    assert not any("segmentation" in record for record in by_image[1])
    assert [record["iscrowd"] for record in by_image[1]] == [0, 1]
    person, small, large = by_image[2]
    for record, (y0, y1, x0, x1) in (
        (person, (25, 39, 5, 25)),
        (small, (2, 9, 3, 13)),
        (large, (11, 20, 31, 50)),
    ):
        expected = np.zeros((40, 60), np.uint8)
        expected[y0:y1, x0:x1] = 1
        assert np.array_equal(mask_util.decode(record["segmentation"]), expected)
        assert record["area"] == expected.sum()
    assert "voc_val.json: 1 images, 3 objects, 3 with a mask" in summary


def test_the_files_are_read_as_training_data(voc, tmp_path):
    convert_pascal_voc(voc, tmp_path)
    file = read_coco_file(tmp_path / "voc_train.json")
    assert file.class_names == list(VOC_CLASSES)
    assert sum(a.mask is not None and not a.iscrowd for a in file.annotations) == 2


def test_the_command_writes_them(voc, tmp_path, capsys):
    main(["prepare", "voc", str(voc), "--output", str(tmp_path / "out")])
    assert "3 with a mask" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").glob("*.json")} == {"voc_train.json", "voc_val.json"}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "ImageSets/Main/trainval.txt").unlink(), r"trainval.txt is not a file"),
        (
            lambda root: (root / "Annotations/masks_val.xml").write_text("<a"),
            r"masks_val.xml is not an ann",
        ),
        (
            lambda root: (root / "Annotations/masks_val.xml").write_text(
                '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'
            ),
            r"masks_val.xml is not an annotation file",
        ),
        (
            lambda root: (root / "Annotations/masks_val.xml").write_text(
                "<a><object><name>unicorn</name></object></a>"
            ),
            r"an object is a 'unicorn'",
        ),
        (lambda root: (root / "SegmentationClass/masks_val.png").unlink(), r"masks_val.png is not a file"),
        (lambda root: (root / "JPEGImages/masks_val.jpg").unlink(), r"masks_val.jpg does not exist"),
        (
            lambda root: Image.new("P", (10, 10)).save(root / "SegmentationObject/masks_val.png"),
            r"has 10 x 10 pixels in mode P, expected 60 x 40",
        ),
    ],
)
def test_what_is_not_as_in_voc_is_named(voc, tmp_path, damage, message):
    damage(voc)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        convert_pascal_voc(voc, tmp_path / "out")
    assert not (tmp_path / "out" / "voc_val.json").exists()


def test_a_folder_that_is_not_voc_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no folder Annotations"):
        convert_pascal_voc(tmp_path, tmp_path / "out")
