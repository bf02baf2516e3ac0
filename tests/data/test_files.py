import json

import pytest

from maskx_d2.data.files import write_json, write_text


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_has_null_for_nan_and_can_be_read_by_all(tmp_path):
    write_json(tmp_path / "a.json", {"x": [float("nan"), 1.5, {"y": (2, float("nan"))}], "z": "NaN"})

    def no_constant(name):
        raise AssertionError(f"{name} is not JSON")

    content = json.loads((tmp_path / "a.json").read_text(), parse_constant=no_constant)
    assert content == {"x": [None, 1.5, {"y": [2, None]}], "z": "NaN"}
