import json
import os

import pytest

from maskx_d2.commands import main as cli
from maskx_d2.data import visual_genome
from maskx_d2.data.class_names import coco_class_names, name_of_synset, visual_genome_class_names
from maskx_d2.data.pycocotools_coco import read_coco
from maskx_d2.data.visual_genome import SPLITS, check_finished, convert_visual_genome, joint_classes

from . import genome
from .plain_visual_genome import plainly

NUM_TEST = 11
OBJECT = {"object_id": 1, "synsets": ["man.n.01"], "x": 1, "y": 1, "w": 1, "h": 1}


@pytest.fixture(autouse=True)
def few_test_images(monkeypatch):
    monkeypatch.setattr(visual_genome, "NUM_TEST_IMAGES", NUM_TEST)


@pytest.fixture
def inputs(tmp_path):
    return genome.write(tmp_path)


def read(folder):
    return {
        split: json.loads((folder / f"vg3k_{split}.json").read_text()) for split in visual_genome.SPLITS
    }


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# ---- The rules ----


@pytest.mark.parametrize("num_classes", [20, 50, 75])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_files_are_those_of_the_rules_written_down_plainly(tmp_path, num_classes, seed):
    inputs = genome.write(tmp_path, seed=seed)
    summary = convert_visual_genome(*inputs, tmp_path / "out", num_classes=num_classes)
    expected = plainly(*inputs, num_classes=num_classes, num_test=NUM_TEST)
    for split, found in read(tmp_path / "out").items():
        assert found["images"] == expected[split]["images"]
        assert found["annotations"] == expected[split]["annotations"]
        assert found["categories"] == expected[split]["categories"]
        assert [c["id"] for c in found["categories"]] == list(range(1, len(found["categories"]) + 1))
        assert summary.images[split] == len(found["images"]) > 0
        assert summary.annotations[split] == len(found["annotations"]) > 0


def test_every_object_is_kept_or_counted_once(inputs, tmp_path):
    summary = convert_visual_genome(*inputs, tmp_path / "out", num_classes=60)
    left_out = summary.without_synset, summary.several_synsets, summary.rare_synset
    assert all(left_out) and summary.objects == summary.kept + sum(left_out)
    assert summary.kept == sum(summary.annotations.values())


def test_coco_classes_come_first_in_cocos_order_and_say_so(inputs, tmp_path):
    convert_visual_genome(*inputs, tmp_path / "out", num_classes=60)
    categories = read(tmp_path / "out")["val"]["categories"]
    assert [c.get("coco_name") for c in categories[:80]] == coco_class_names()
    assert not any("coco_name" in c for c in categories[80:])
    names = [c["name"] for c in categories]
    assert names[80:] == sorted(names[80:]) and len(set(names)) == len(names)


def test_of_two_synsets_of_one_name_the_more_frequent_is_cocos():
    joint = joint_classes(["truck.n.02", "zoo.n.01", "truck.n.01", "ape.n.01"])
    assert joint[coco_class_names().index("truck")] == "truck.n.02"
    assert joint[80:] == ["ape.n.01", "truck.n.01", "zoo.n.01"]


def test_the_coco_part_of_the_originals_list_is_derived():
    expected = visual_genome_class_names()
    synsets = [f"{name}.n.01" for name in dict.fromkeys(expected)]
    # The exceptions that are not called .n.01.
    synsets = [
        s for s in synsets if s not in ("doughnut.n.01", "sign.n.01", "bag.n.01", "hand_blower.n.01")
    ]
    synsets += ["doughnut.n.02", "sign.n.02", "bag.n.04", "bag.n.06"]
    joint = joint_classes(synsets)
    assert [name_of_synset(synset) for synset in joint[:80]] == expected[:80]
    # The only class that Visual Genome does not have among its 3,000: which is why they are 3,001.
    assert set(joint[:80]) - set(synsets) == {"hand_blower.n.01"}


def test_what_is_written_can_be_read_and_trained_on(inputs, tmp_path):
    convert_visual_genome(*inputs, tmp_path / "out", num_classes=60)
    coco = read_coco(tmp_path / "out" / "vg3k_train.json")
    assert len(coco.imgs) and len(coco.anns)
    assert not any("segmentation" in a for a in coco.dataset["annotations"])


# ---- Inputs that are not as they should be ----


def test_what_can_be_passed_over_is_counted(inputs, tmp_path):
    def spoil(objects):
        items = [item for image in objects for item in image["objects"] if len(item["synsets"]) == 1]
        del items[0]["synsets"]
        items[1]["w"] = -3
        items[2]["h"] = 0
        items[4]["object_id"] = items[3]["object_id"]
        objects.append({"image_id": 9999, "objects": [items[5]], "image_url": ""})
        del objects[7]

    edit(inputs[1], spoil)
    summary = convert_visual_genome(*inputs, tmp_path / "out", num_classes=20)
    counts = (summary.no_synsets_key, summary.bad_boxes, summary.renumbered, summary.unknown_images)
    assert counts[:2] == (1, 2) and counts[3] == 1
    assert summary.objects_of_unknown_images == 1 and summary.images_without_objects == 1
    text = str(summary)
    for line in (
        "left out: no key 'synsets': 1",
        "left out: box without positive size: 2",
        "images in objects.json that are not in image_data.json: 1",
        "left out: their objects: 1",
        "images that are not in objects.json: 1",
    ):
        assert line in text
    everything = [a for content in read(tmp_path / "out").values() for a in content["annotations"]]
    assert len({a["id"] for a in everything}) == len(everything)


def test_objects_of_one_id_are_renumbered(inputs, tmp_path):
    def spoil(objects):
        for image in objects:
            for item in image["objects"]:
                item["object_id"] = 5

    edit(inputs[1], spoil)
    summary = convert_visual_genome(*inputs, tmp_path / "out", num_classes=60)
    assert summary.renumbered == summary.kept - 1
    ids = sorted(a["id"] for content in read(tmp_path / "out").values() for a in content["annotations"])
    assert ids == list(range(5, 5 + summary.kept))


def cut(path):
    path.write_text(path.read_text()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("number", "change", "message"),
    [
        (0, cut, r"image_data.json is not in the format of Visual Genome or COCO: .*truncated"),
        (1, cut, r"objects.json is not in the format of Visual Genome or COCO: .*truncated"),
        (2, cut, r"instances_val2017.json is not in the format of Visual Genome or COCO: .*truncated"),
        (
            0,
            lambda p: edit(p, lambda c: c[3].pop("width")),
            r"image_data.json .* missing required field `width`",
        ),
        (0, lambda p: edit(p, lambda c: c.append(c[0])), r"image_data.json has 1 image ids twice"),
        (
            1,
            lambda p: edit(p, lambda c: c[2].pop("objects")),
            r"image number 3 of .*objects.json .*`objects`",
        ),
        (
            1,
            lambda p: edit(p, lambda c: c.append(c[4])),
            r"objects.json has the image 5 twice, expected once",
        ),
        (
            1,
            lambda p: p.write_text("{}"),
            r"objects.json is not in the format of Visual Genome or COCO: Expected `array`",
        ),
        (
            1,
            lambda p: edit(p, lambda c: c[4].update(image_id=2**31)),
            r"image number 5 of .*objects.json is not in the format of Visual Genome: Expected `int`",
        ),
        (
            1,
            lambda p: edit(p, lambda c: c[4]["objects"].append({**OBJECT, "x": 1e300})),
            r"image number 5 of .*objects.json is not in the format of Visual Genome: Expected `float`",
        ),
        (
            2,
            lambda p: p.write_text("[]"),
            r"val2017.json is not in the format .* Expected `object`",
        ),
        (1, lambda p: p.write_text(""), r"objects.json is not in the format of Visual Genome or COCO"),
    ],
)
def test_a_malformed_input_is_named_and_nothing_is_written(inputs, tmp_path, number, change, message):
    change(inputs[number])
    with pytest.raises(ValueError, match=message):
        convert_visual_genome(*inputs, tmp_path / "out", num_classes=20)
    assert not list(tmp_path.glob("out/*"))


def test_an_interruption_leaves_no_output_and_what_was_there_before(inputs, tmp_path):
    def interrupted(iterable, title, total):
        for i, item in enumerate(iterable):
            if title == "writing val" and i == 3:
                raise KeyboardInterrupt
            yield item

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "vg3k_train.json").write_text("from before")
    with pytest.raises(KeyboardInterrupt):
        convert_visual_genome(*inputs, tmp_path / "out", num_classes=20, progress=interrupted)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["vg3k_train.json"]
    assert (tmp_path / "out" / "vg3k_train.json").read_text() == "from before"


def test_a_folder_where_a_file_shall_be_stops_before_anything_is_written(inputs, tmp_path):
    (tmp_path / "out" / "vg3k_val.json").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"vg3k_val.json is a folder, expected a file or nothing"):
        convert_visual_genome(*inputs, tmp_path / "out", num_classes=20)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["vg3k_val.json"]


def test_more_classes_than_there_are_is_an_error(inputs, tmp_path):
    with pytest.raises(
        ValueError, match=r"there are \d+ synsets, expected at least the 3000 of --num-classes"
    ):
        convert_visual_genome(*inputs, tmp_path / "out")


# ---- The command ----


def test_the_command_converts_and_prints_the_summary(inputs, tmp_path, capsys):
    names = ("--image-data", "--objects", "--coco-val")
    options = [word for pair in zip(names, map(str, inputs), strict=True) for word in pair]
    out = tmp_path / "out"
    cli.main(["prepare", "vg3k", *options, "--output", str(out), "--num-classes", "20"])
    printed = capsys.readouterr()
    assert "train: " in printed.out and "objects kept: " in printed.out
    num_classes = len(read(out)["val"]["categories"])
    assert f"\nclasses: {num_classes}\n" in printed.out and num_classes > 80
    assert "reading objects" in printed.err and "writing train" in printed.err
    assert sorted(p.name for p in out.iterdir()) == ["vg3k_test.json", "vg3k_train.json", "vg3k_val.json"]
    with pytest.raises(SystemExit) as stopped:
        cli.main(["prepare", "vg3k", *options[:-1], "absent.json", "--output", str(out)])
    assert stopped.value.code == 2
    assert "maskx: absent.json is not a file" in capsys.readouterr().err


def test_files_of_two_conversions_are_told_apart(tmp_path, monkeypatch):
    paths = genome.write(tmp_path)
    output = tmp_path / "out"
    convert_visual_genome(*paths, output, num_classes=50)
    check_finished(output)
    replace, count = os.replace, 0

    def stop_at_the_second(*arguments):
        nonlocal count
        count += 1
        if count == 2:
            raise KeyboardInterrupt
        replace(*arguments)

    monkeypatch.setattr(os, "replace", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        convert_visual_genome(*paths, output, num_classes=40)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"out/vg3k_unfinished says that the files beside it may not"):
        check_finished(output)
    convert_visual_genome(*paths, output, num_classes=40)
    check_finished(output)
    assert sorted(path.name for path in output.iterdir()) == sorted(f"vg3k_{s}.json" for s in SPLITS)


def test_image_data_without_an_image_is_named(tmp_path):
    paths = genome.write(tmp_path)
    paths[0].write_text("[]")
    with pytest.raises(ValueError, match=r"image_data.json has no image, expected those of Visual Genome"):
        convert_visual_genome(*paths, tmp_path / "out")
