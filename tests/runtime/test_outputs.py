import os
from pathlib import Path

import pytest

from maskx_d2.runtime.lock import LOCK_FILE
from maskx_d2.runtime.outputs import OutputFile, OutputFolder, check_outputs, named_files, writing

NAMES = ("log.txt*", "config.yaml", "model_*.pth", "inference/*")


@pytest.mark.parametrize(
    ("name", "replaced"),
    [
        *[(name, True) for name in ("log.txt", "log.txt.rank1", "config.yaml", "model_final.pth")],
        *[(name, True) for name in ("inference/a.json", "inference/more/a.json")],
        *[
            (name, False)
            for name in ("other.pth", "sub/config.yaml", "sub/model_1.pth", "log", "sub/log.txt")
        ],
    ],
)
def test_inputs_are_kept_where_a_folder_has_files_of_their_names(tmp_path, name, replaced):
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.touch()
    (tmp_path / "link").symlink_to(path)
    for given in (path, tmp_path / "link", tmp_path / "run" / "x" / ".." / name):
        if not replaced:
            check_outputs([OutputFolder(tmp_path / "run", NAMES)], [given])
            continue
        with pytest.raises(ValueError, match=r"would overwrite its input .*: give another output"):
            check_outputs([OutputFolder(tmp_path / "run", NAMES)], [given])


def test_an_image_of_an_input_folder_is_no_output(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for name in ("1.PNG", "new.jpg"):
        with pytest.raises(ValueError, match=rf"{name} would be among the images of .*images"):
            check_outputs([OutputFile(images / name)], [images])
    check_outputs([OutputFile(images / "filled.json")], [images])
    check_outputs([OutputFile(tmp_path / "1.png")], [images])


def test_what_a_config_names_is_an_input_and_what_its_bases_name(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    for name in ("w.pth", "a.json", "names.txt", "free.json"):
        (tmp_path / "sub" / name).touch()
    (tmp_path / "base.yaml").write_text(
        "DATASETS: {MASKX_REGISTER: [[x, sub/a.json, sub]]}\nA: &a [names.txt]\nB: *a"
    )
    (tmp_path / "c.yaml").write_text(f"_BASE_: base.yaml\nMODEL: {{WEIGHTS: {tmp_path / 'sub' / 'w.pth'}}}")
    for name in ("w.pth", "a.json", "names.txt", "../base.yaml", "../c.yaml"):
        with pytest.raises(ValueError, match="would overwrite its input"):
            check_outputs([OutputFile(Path(name))], [tmp_path / "c.yaml"])
    check_outputs([OutputFile(Path("free.json"))], [tmp_path / "c.yaml"])


@pytest.mark.parametrize(
    "content", ["a: [", "\xff", "[" * 5000, "a: !!python/object:os.system x", "? [a]\n: b"]
)
def test_a_config_that_cannot_be_read_names_nothing(tmp_path, content):
    (tmp_path / "c.yaml").write_text(content, encoding="latin1")
    check_outputs([OutputFile(tmp_path / "out")], [tmp_path / "c.yaml"])


def test_files_are_found_in_whatever_configs_are_made_of(tmp_path):
    (tmp_path / "a").touch()
    values = {
        "x": [1, None, ("b", str(tmp_path / "a"))],
        "y": {"z": tmp_path / "a"},
        "n": "\0",
        "l": "x" * 5000,
    }
    assert named_files(values) == [tmp_path / "a"] * 2
    assert named_files(["a", "s3://a", ""], folder=tmp_path) == [tmp_path / "a"]


@pytest.mark.parametrize(
    "name", ["log.txt", "config.yaml", "model_final.pth", "inference", "inference/x/a.json"]
)
@pytest.mark.parametrize("kind", ["link", "link to nothing", "pipe"])
def test_links_and_pipes_in_a_folder_are_refused_where_its_files_would_be(tmp_path, name, kind):
    (tmp_path / "kept").write_text("kept")
    folder = tmp_path / "run"
    (folder / name).parent.mkdir(parents=True)
    if kind == "pipe":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to(tmp_path / ("kept" if kind == "link" else "absent"))
    with pytest.raises(ValueError, match=rf"{name} is a (link|device or a pipe)"):
        check_outputs([OutputFolder(folder, NAMES)], [])
    (folder / name).rename(folder / "other")
    check_outputs([OutputFolder(folder, NAMES)], [])


def test_outputs_are_held_while_they_are_written(tmp_path):
    folder, file = tmp_path / "run", tmp_path / "new" / "a.json"
    with writing([OutputFolder(folder, NAMES), OutputFile(file)], [None, "s3://bucket/a"]):
        assert (folder / LOCK_FILE).is_file() and (tmp_path / "new" / f"a.json{LOCK_FILE}").is_file()
        file.touch()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.json", "new"]
    (tmp_path / "x").touch()
    with (
        pytest.raises(ValueError, match="x is not a folder"),
        writing([OutputFolder(tmp_path / "x", ())], []),
    ):
        pass
