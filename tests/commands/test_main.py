import argparse
import json
import os
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

import maskx_d2
from maskx_d2.commands import main as cli
from maskx_d2.runtime import optional_packages as requirements

CATEGORIES = [{"id": 5, "name": "dog"}, {"id": 2, "name": "cat"}, {"id": 9, "name": "cow"}]


@pytest.fixture
def annotations(tmp_path):
    path = tmp_path / "truth.json"
    boxes = [
        {"id": i, "image_id": 1, "category_id": c, "bbox": [i, i, 9, 9]} for i, c in enumerate((5, 5, 2, 9))
    ]
    image = {"id": 1, "file_name": "1.png", "width": 99, "height": 99}
    path.write_text(json.dumps({"images": [image], "annotations": boxes, "categories": CATEGORIES}))
    return path


def printed(capsys, *arguments):
    cli.main([str(argument) for argument in arguments])
    return capsys.readouterr().out


def failure(capsys, *arguments):
    """The sentence that a user's mistake ends with."""
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(argument) for argument in arguments])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_split_is_printed_with_its_two_sides(capsys):
    with_masks, boxes_only = printed(capsys, "splits", "voc").splitlines()
    assert with_masks.startswith("A, with masks (20 classes): person, bicycle, car")
    assert boxes_only.startswith("B, boxes only (60 classes): truck, traffic light")


def test_a_split_of_an_annotation_file_has_its_classes_and_instances(capsys, annotations, tmp_path):
    (tmp_path / "names.txt").write_text("dog\n")
    lines = printed(capsys, "splits", tmp_path / "names.txt", annotations).splitlines()
    assert lines == [
        "A, with masks (1 classes, 2 instances): dog",
        "B, boxes only (2 classes, 2 instances): cat, cow",
    ]
    sides = json.loads(printed(capsys, "splits", tmp_path / "names.txt", annotations, "--json"))
    assert sides == {"with_masks": ["dog"], "boxes_only": ["cat", "cow"]}


def test_a_split_of_categories_that_say_what_they_are_in_coco_goes_by_that(capsys, annotations, tmp_path):
    content = json.loads(annotations.read_text())
    # Another class has the name, too: COCO's is the first.
    content["categories"] = [
        {"id": 2, "name": "canine.n.01", "coco_name": "dog"},
        {"id": 5, "name": "dog"},
        {"id": 9, "name": "cow.n.01"},
    ]
    annotations.write_text(json.dumps(content))
    (tmp_path / "names.txt").write_text("dog\n")
    lines = printed(capsys, "splits", tmp_path / "names.txt", annotations).splitlines()
    assert lines == [
        "A, with masks (1 classes, 1 instances): dog",
        "B, boxes only (2 classes, 3 instances): dog, cow.n.01",
    ]


def test_a_split_in_json_has_every_class_once(capsys):
    sides = json.loads(printed(capsys, "splits", "E3_A50B30", "--json"))
    assert (len(sides["with_masks"]), len(sides["boxes_only"])) == (50, 30)
    assert len({*sides["with_masks"], *sides["boxes_only"]}) == 80


def test_embeddings_are_written_for_the_classes_that_are_given(capsys, annotations, tmp_path):
    (tmp_path / "vectors.txt").write_text("cat 1 2\ndog 3 4\ncow 5 6\n")
    (tmp_path / "names.txt").write_text("cow\ncat\n")
    glove = [
        "embeddings",
        "glove",
        "--vectors",
        tmp_path / "vectors.txt",
        "--output",
        tmp_path / "table.npy",
    ]
    assert "2 numbers for each of 3 classes" in printed(capsys, *glove, "--classes", annotations)
    # In the order of the category ids.
    assert np.load(tmp_path / "table.npy").tolist() == [[1, 2], [3, 4], [5, 6]]
    printed(capsys, *glove, "--classes", tmp_path / "names.txt")
    assert np.load(tmp_path / "table.npy").tolist() == [[5, 6], [1, 2]]
    printed(capsys, "embeddings", "random", "--dim", 7, "--seed", 3, "--output", tmp_path / "random.npy")
    table = np.load(tmp_path / "random.npy")
    assert table.shape == (80, 7) and 0.7 < np.linalg.norm(table, axis=1).mean() < 1.3


def test_users_mistakes_end_with_one_sentence(capsys, annotations, tmp_path):
    (tmp_path / "empty.txt").touch()
    out = ["--output", tmp_path / "table.npy"]
    random = ["embeddings", "random", *out, "--classes"]
    assert "'nothing' is neither a file nor one of all, voc" in failure(capsys, "splits", "nothing")
    assert "names 'person'" in failure(capsys, "splits", "voc", annotations)
    assert "absent.json is not a file" in failure(capsys, "splits", "voc", tmp_path / "absent.json")
    assert "class name file" in failure(capsys, *random, tmp_path / "absent.txt")
    assert "is empty, expected one name per line" in failure(capsys, *random, tmp_path / "empty.txt")
    glove = ["embeddings", "glove", "--vectors", tmp_path / "absent.txt", *out]
    assert "absent.txt are not a file" in failure(capsys, *glove)
    assert not (tmp_path / "table.npy").exists()


def test_a_backend_that_is_not_installed_is_named_with_its_install_command(capsys, monkeypatch):
    monkeypatch.setattr(requirements, "detectron2_problem", lambda: "which is not installed: pip")
    for arguments in (
        ["demo", "--backend", "detectron2"],
        ["predict", "--config-file", "a.yaml", "--weights", __file__, "--output", "out", __file__],
        ["fill-masks", "--config-file=a.yaml", f"--weights={__file__}", "--output=o", __file__, "."],
        ["convert", __file__, "--output", "out"],
    ):
        line = failure(capsys, *arguments)
        assert "needs Detectron2, which is not installed: pip" in line


def test_without_gradio_its_install_command_is_named(capsys, monkeypatch):
    monkeypatch.setattr(requirements, "find_spec", lambda name: None)
    line = failure(capsys, "app")
    assert "maskx app needs gradio and supervision and cv2, which are not installed: pip install" in line
    assert line.endswith("'gradio>=6,<7' 'supervision>=0.31' 'opencv-python'")


def test_without_ray_its_install_command_is_named(capsys, monkeypatch):
    monkeypatch.setattr(requirements, "find_spec", lambda name: None if name == "ray" else name)
    for arguments in (["predict", "images"], ["fill-masks", "a.json", "images"]):
        line = failure(capsys, *arguments, "--weights=a.ckpt", "--output=out", "--ray")
        assert "--ray needs ray, which is not installed: pip install 'ray[data]" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "{images}", "--ray", "--top", "3"], "--top is for pictures and videos, which --ray"),
        (["predict", "{images}", "--ray", "--merge", "0.5"], "--merge is for pictures and videos"),
        (["predict", "{images}", "--ray", "--every", "2"], "--every is for pictures and videos"),
        (["predict", "a.MP4", "--ray"], "a.MP4 is a video, expected images with --ray"),
        (["predict", "absent", "--ray"], "absent is neither an image nor a folder"),
        (["predict", "file:///absent", "--ray"], "file:///absent is neither an image nor a folder"),
        (["predict", "foo://a", "--ray"], "foo://a/ is not an address that pyarrow can read"),
        (["predict", "s3://bucket/a"], "s3://bucket/a is a URL, which needs --ray"),
        (["predict", "{images}", "--output", "s3://b"], "s3://b is a URL, which needs --ray"),
        (["fill-masks", "a.json", "s3://bucket/a"], "s3://bucket/a is a URL, which needs --ray"),
    ],
)
def test_what_ray_does_not_do_and_what_takes_it_is_said(capsys, tmp_path, arguments, message):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").touch()
    arguments = [word.format(images=tmp_path / "images") for word in arguments]
    if "--output" not in arguments:
        arguments += ["--output", tmp_path / "out"]
    assert message in failure(capsys, *arguments, "--weights", __file__)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["compare", "run", "--images", "-1"],
        ["embeddings", "random", "--output", "x.npy", "--dim", "0"],
        [
            "prepare",
            "vg3k",
            "--image-data=a",
            "--objects=b",
            "--coco-val=c",
            "--output=d",
            "--num-classes=0",
        ],
    ],
)
def test_numbers_that_make_no_sense_are_refused(capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert "is less than" in capsys.readouterr().err


def test_a_file_where_a_folder_should_be_ends_with_one_sentence(capsys, tmp_path):
    (tmp_path / "file").touch()
    table = tmp_path / "file" / "table.npy"
    assert "file" in failure(capsys, "embeddings", "random", "--output", table)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    assert "latin.txt is not text in UTF-8" in failure(capsys, "splits", tmp_path / "latin.txt")


def test_shapes_are_drawn_as_the_demo_draws_them(tmp_path, capsys):
    from maskx_d2.demo import shapes

    words = ["prepare", "shapes", "--train", "4", "--test", "2", "--seed", "3", "--output"]
    out = printed(capsys, *words, tmp_path / "mine")
    expected = shapes.generate(tmp_path / "expected", num_train=4, num_test=2, seed=3)
    for path in (expected.train_json, expected.test_json, expected.split_file):
        own = tmp_path / "mine" / path.relative_to(expected.root)
        assert own.read_bytes() == path.read_bytes()
    assert str(tmp_path / "mine" / "annotations" / "train.json") in out
    line = failure(capsys, *words, tmp_path / "mine")
    assert "already exists, expected a new or an empty folder" in line


# ---- Inputs and outputs ----


def subparsers(parser, name=()):
    """(words, parser) of every command that does something."""
    inner = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    for action in inner:
        for word, sub in action.choices.items():
            yield from subparsers(sub, (*name, word))
    if not inner and name not in (("torchvision",), ("detectron2",)):
        yield name, parser


COMMANDS = dict(subparsers(cli._parser()))
NO_PATHS = {"N", "P", "IOU", "MIB", "D", "ADDRESS", "NAME", "DEVICE", "KEY VALUE"}


@pytest.mark.parametrize("words", COMMANDS)
def test_every_option_with_a_path_is_an_input_or_an_output(words):
    parser = COMMANDS[words]
    with_path = {
        action.dest
        for action in parser._actions
        if action.metavar is not None and action.metavar not in NO_PATHS
    }
    inputs, has_output = set(parser.get_default("inputs") or ()), parser.get_default("written") is not None
    assert with_path - inputs == ({"output"} if has_output else set())
    assert not any(action.dest == "output" for action in parser._actions) or has_output


def written_names(parser):
    """A name for each pattern of what the command writes."""
    beside = [f"../out{ending}" for ending in parser.get_default("written_beside") or ()]
    return [name.replace("*", "x") for name in parser.get_default("written")] or ["", *beside]


PAIRS = [
    (words, dest, name)
    for words, parser in COMMANDS.items()
    if parser.get_default("written") is not None
    for dest in parser.get_default("inputs") or ()
    for name in written_names(parser)
]


@pytest.mark.parametrize(("words", "dest", "name"), PAIRS)
def test_no_command_writes_over_any_of_its_inputs(tmp_path, capsys, words, dest, name):
    output = tmp_path / "out"
    path = Path(os.path.normpath(output / name))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("kept")
    arguments = []
    for action in sorted(COMMANDS[words]._actions, key=lambda action: action.dest == "opts"):
        if action.dest == "output":
            arguments += ["--output", output]
        elif action.dest == dest or action.required:
            (tmp_path / "other").touch()
            value = path if action.dest == dest else tmp_path / "other"
            given = [f"a={value}"] if action.dest == "group" else [value]
            given = ["MODEL.WEIGHTS", value] if action.dest == "opts" else given
            arguments += [*action.option_strings[:1], *given]
    line = failure(capsys, *words, *arguments)
    assert f"the output would overwrite its input {path}: give another output" in line
    assert path.read_text() == "kept"


def test_every_command_that_reads_images_has_their_limit(capsys):
    reads_images = {("predict",), ("fill-masks",), ("app",), ("compare",), ("check-dataset",)}
    found = {words for words, parser in COMMANDS.items() if parser.get_default("max_megapixels")}
    assert found == reads_images and {COMMANDS[w].get_default("max_megapixels") for w in found} == {50}
    for value in ("0", "179", "nan"):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["check-dataset", "a.json", "images", "--max-megapixels", value])
        assert stopped.value.code == 2
        assert f"{value} is not between 0 and 178" in capsys.readouterr().err


# ---- The command itself ----


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"maskx_d2 {maskx_d2.__version__}\n"
    assert version("maskx_d2") == maskx_d2.__version__
    assert files("maskx_d2").joinpath("py.typed").is_file()


def test_maskx_detectron2_is_train_net(capsys, tmp_path):
    pytest.importorskip("detectron2", reason="needs Detectron2, which is not installed")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["detectron2", "--help"])
    out = capsys.readouterr().out
    assert stopped.value.code == 0 and "usage: maskx detectron2" in out and "--num-gpus" in out
    line = failure(capsys, "detectron2", "--config-file", tmp_path / "absent.yaml")
    assert line.startswith("maskx detectron2: config ") and "absent.yaml' is not a file" in line


def test_without_detectron2_maskx_detectron2_says_how_to_install_it(capsys, monkeypatch):
    monkeypatch.setattr(requirements, "find_spec", lambda name: None)
    assert "maskx detectron2 needs Detectron2, which is not installed: pip" in failure(capsys, "detectron2")
