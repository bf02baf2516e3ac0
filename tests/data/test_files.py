import json
import os
import resource
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from maskx_d2.backends.torchvision.callbacks import WholeFiles
from maskx_d2.data.class_embeddings import write_table
from maskx_d2.data.files import check_keeps_inputs, load_json, replacing, write_json, write_png, write_text


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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: os.mkfifo(path), "is a device or a pipe"),
        (lambda path: path.symlink_to("/dev/full"), "is a link"),
        (lambda path: path.symlink_to("absent"), "is a link"),
        (lambda path: path.symlink_to(path), "is a link"),
        (lambda path: path.mkdir(), "is a folder"),
    ],
    ids=["pipe", "link to a device", "link to nothing", "link to itself", "folder"],
)
def test_nothing_but_files_is_replaced(tmp_path, make, message):
    path = tmp_path / "out"
    make(path)
    before = path.lstat()
    with pytest.raises(ValueError, match=message):
        write_text(path, "new")
    assert (path.lstat().st_mode, path.lstat().st_ino) == (before.st_mode, before.st_ino)
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_link_points_to_is_not_written_to(tmp_path):
    (tmp_path / "kept").write_text("kept")
    (tmp_path / "link").symlink_to("kept")
    with pytest.raises(ValueError, match=r"link is a link, expected a file or nothing"):
        write_text(tmp_path / "link", "new")
    assert (tmp_path / "kept").read_text() == "kept"


def test_somebody_elses_partial_file_stays(tmp_path):
    (tmp_path / "a.json.partial").write_text("mine")
    write_text(tmp_path / "a.json", "new")
    assert (tmp_path / "a.json.partial").read_text() == "mine"


def test_two_that_write_at_one_time_leave_one_whole_file(tmp_path):
    path = tmp_path / "a"
    texts = [character * 3_000_000 for character in "xyz"]
    barrier = threading.Barrier(3)

    def write(text):
        with replacing(path) as temporary, temporary.open("w") as file:
            for start in range(0, len(text), 1_000_000):
                barrier.wait()
                file.write(text[start : start + 1_000_000])

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in texts
    assert list(tmp_path.iterdir()) == [path]


def test_files_have_the_rights_that_other_new_files_have(tmp_path):
    write_text(tmp_path / "a", "")
    (tmp_path / "b").write_text("")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_text(path, "x" * 100_000),
        lambda path: WholeFiles().save_checkpoint({"a": torch.zeros(100_000)}, path),
        lambda path: write_table(path, np.zeros((100, 1000), np.float32)),
    ],
    ids=["text", "checkpoint", "class embeddings"],
)
def test_a_full_disk_is_named_by_the_file_that_it_is_too_full_for(tmp_path, write):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*/large'$"):
            write(tmp_path / "large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_a_picture_is_written_whole_or_not_at_all(tmp_path):
    write_png(tmp_path / "a.png", Image.new("RGB", (3, 4), "red"))
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (3, 4) and picture.getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises(OSError, match="F"):
        write_png(tmp_path / "a.png", Image.new("F", (3, 4)))
    assert list(tmp_path.iterdir()) == [tmp_path / "a.png"] and (tmp_path / "a.png").stat().st_size > 0


def test_an_output_that_is_an_input_is_refused_however_it_is_written(tmp_path):
    (tmp_path / "a").touch()
    (tmp_path / "link").symlink_to("a")
    check_keeps_inputs([tmp_path / "b"], [tmp_path / "a"])
    for output in (tmp_path / "a", tmp_path / "link", tmp_path / ".." / tmp_path.name / "a"):
        with pytest.raises(ValueError, match=r"would overwrite its input .*: give another --output"):
            check_keeps_inputs([output], [tmp_path / "a"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "is nested too deep"),
        (b"[1" + b"0" * 5_000 + b"]", "is not JSON: .*digits"),
        (b'{"a": \xff}', "is not JSON: "),
        (b'{"a": ', "is not JSON: "),
        (b"", "is not JSON: "),
    ],
)
def test_what_is_no_json_is_named_in_one_line(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"^annotations .*a.json {message}[^\n]*$"):
        load_json(tmp_path / "a.json", what="annotations")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError, match=r"annotations .*pipe is not a file"):
        load_json(tmp_path / "pipe", what="annotations")
