import json

import pytest

from maskx_d2.data.pycocotools_coco import class_names, read_coco


def test_classes_come_in_the_order_of_their_ids(tmp_path):
    categories = [{"id": 9, "name": "zebra"}, {"id": 2, "name": "cat"}, {"id": 5, "name": "dog"}]
    path = tmp_path / "truth.json"
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    assert class_names(read_coco(path)) == ["cat", "dog", "zebra"]


def test_nothing_is_printed(tmp_path, capsys):
    path = tmp_path / "truth.json"
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}))
    read_coco(path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [', r"truth.json is not JSON: Expecting value"),
        ("\x89PNG", r"truth.json is not JSON"),
        ("[]", r"truth.json has no list 'images', expected images, annotations, categories"),
        ('{"images": [], "annotations": []}', r"truth.json has no list 'categories'"),
    ],
)
def test_errors_name_the_file_and_what_is_missing(tmp_path, text, message):
    path = tmp_path / "truth.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=message):
        read_coco(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"annotation file .*absent.json is not a file"):
        read_coco(tmp_path / "absent.json")
