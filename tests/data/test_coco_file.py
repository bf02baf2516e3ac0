import json

import pytest

from maskx_d2.data import coco_file
from maskx_d2.data.coco_file import read_categories, read_coco_file
from maskx_d2.data.pycocotools_coco import read_coco

from . import awkward


@pytest.fixture
def fast_alone(monkeypatch):
    """As if there were no other way."""

    def fail(path, **options):
        raise AssertionError(f"{path} was read again")

    monkeypatch.setattr(coco_file, "_read_slowly", fail)


def assert_same(found, path):
    """As pycocotools has it."""
    expected = read_coco(path)
    assert [image.id for image, _ in found.by_image()] == sorted(expected.imgs)
    assert [category["id"] for category in found.categories] == sorted(expected.cats)
    for image, annotations in found.by_image():
        assert expected.imgs[image.id] == {**expected.imgs[image.id], **_fields(image)}
        for annotation, other in zip(annotations, expected.imgToAnns[image.id], strict=True):
            assert (annotation.category_id, annotation.bbox) == (other["category_id"], other["bbox"])
            assert (annotation.mask or []) == (other.get("segmentation") or [])
            assert int(annotation.iscrowd or 0) == other["iscrowd"]


def _fields(image):
    return {name: getattr(image, name) for name in ("id", "file_name", "width", "height")}


@pytest.mark.parametrize(
    "name",
    [name for name in awkward.WORKS if name not in ("ids and sizes with a point", "RLE with points")],
)
def test_what_works_is_read_at_once(tmp_path, name, fast_alone):
    path = awkward.write(tmp_path, awkward.changed(awkward.WORKS[name][0]))
    assert_same(read_coco_file(path), path)
    assert read_categories(path) == read_coco_file(path).categories


def test_photographs_with_polygons_and_crowds_are_read_at_once(coco_mini, fast_alone):
    path = coco_mini / "annotations" / "instances_val2017.json"
    assert_same(read_coco_file(path), path)


@pytest.mark.parametrize("name", awkward.FAILS)
def test_what_fails_is_named_as_by_the_slower_way(tmp_path, name):
    change, message = awkward.FAILS[name]
    path = awkward.write(tmp_path, awkward.changed(change))
    with pytest.raises(ValueError, match=rf"^annotation file .*truth.json: {message}[^\n]*$"):
        read_coco_file(path)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("iscrowd as a number with a point", {"iscrowd": 1.0}),
        ("iscrowd as a truth value", {"iscrowd": False}),
        ("unknown things", {"attributes": {"occluded": True}}),
    ],
)
def test_what_is_unusual_and_no_error_is_read_all_the_same(tmp_path, name, change):
    content = awkward.content()
    content["annotations"][0].update(change)
    content["images"].reverse()
    content["categories"].reverse()
    path = awkward.write(tmp_path, content)
    assert_same(read_coco_file(path), path)


def test_images_without_annotations_and_files_without_images(tmp_path, fast_alone):
    content = awkward.content()
    content["annotations"] = content["annotations"][2:]
    path = awkward.write(tmp_path, content)
    file = read_coco_file(path)
    assert_same(file, path)
    assert [len(annotations) for _, annotations in file.by_image()] == [0, 2]
    path = awkward.write(tmp_path, {**content, "images": [], "annotations": []})
    assert list(read_coco_file(path).by_image()) == []


@pytest.mark.parametrize("text", ["", "[]", "{", "\x89PNG", '{"images": [], "annotations": []}'])
def test_what_is_no_annotation_file_is_named(tmp_path, text):
    path = tmp_path / "truth.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"annotation file .*truth.json (is not JSON|has no list)"):
        read_coco_file(path)
    with pytest.raises(FileNotFoundError, match=r"annotation file .*absent.json is not a file"):
        read_coco_file(tmp_path / "absent.json")


def test_ids_at_the_ends_of_their_range(tmp_path):
    for identifier in (-(2**63), -(2**53), 2**53, 2**63):
        content = awkward.content()
        content["annotations"][0]["id"] = identifier
        with pytest.raises(ValueError, match=r"annotation number 1 has the id .*, expected a whole number"):
            read_coco_file(awkward.write(tmp_path, json.loads(json.dumps(content))))


def test_categories_are_read_without_what_else_is_wrong_and_named_where_they_are(tmp_path, monkeypatch):
    content = awkward.changed(lambda content: content["annotations"].append({"id": "no number"}))
    path = awkward.write(tmp_path, content)
    with monkeypatch.context() as patched:
        patched.setattr(coco_file, "read_coco_file", None)
        found = read_categories(path)
    ids = [category["id"] for category in content["categories"]]
    assert [category["id"] for category in found] == sorted(ids)
    content["categories"].append(content["categories"][0])
    awkward.write(tmp_path, content)
    with pytest.raises(ValueError, match=r"^annotation file .*truth.json: "):
        read_categories(path)
    with pytest.raises(FileNotFoundError, match=r"annotation file .*absent.json is not a file"):
        read_categories(tmp_path / "absent.json")
