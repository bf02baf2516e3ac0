import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskx_d2.commands import main as cli
from maskx_d2.data.coco_file import read_coco_file, read_json
from maskx_d2.data.coco_remarks import find_problems
from maskx_d2.data.dataset_check import find_image_problems, problem_report
from maskx_d2.data.pycocotools_coco import read_coco

from . import awkward, exports


@pytest.mark.parametrize("name", awkward.WORKS)
def test_what_works_is_read_and_has_no_errors(tmp_path, name):
    changed = awkward.changed(awkward.WORKS[name][0])
    coco = read_coco(awkward.write(tmp_path, changed))
    problems = find_problems(read_json(tmp_path / "truth.json"))
    assert not [problem for problem in problems if problem.is_error]
    # pycocotools can make a mask of all that is left of the segmentations.
    for annotation in coco.dataset["annotations"]:
        if annotation.get("segmentation"):
            assert coco.annToMask(annotation).sum() in (100, 200, 4000)
        assert {"area", "iscrowd"} <= set(annotation)


@pytest.mark.parametrize("name", awkward.FAILS)
def test_what_fails_is_named_with_file_and_annotation(tmp_path, name):
    change, message = awkward.FAILS[name]
    path = awkward.write(tmp_path, awkward.changed(change))
    with pytest.raises(ValueError, match=rf"^annotation file .*truth.json: {message}[^\n]*$"):
        read_coco(path)


@pytest.mark.parametrize("name", awkward.FAILS)
def test_what_fails_is_an_error_in_the_report(tmp_path, name):
    content = read_json(awkward.write(tmp_path, awkward.changed(awkward.FAILS[name][0])))
    assert any(problem.is_error for problem in find_problems(content))


def test_a_file_cut_in_half_is_named(tmp_path):
    path = awkward.write(tmp_path)
    path.write_text(path.read_text()[:200])
    with pytest.raises(ValueError, match=r"annotation file .*truth.json is not JSON: "):
        read_coco(path)


def test_the_first_of_many_errors_is_named_with_their_number(tmp_path):
    content = awkward.content()
    for annotation in content["annotations"]:
        annotation["category_id"] = 9
    with pytest.raises(ValueError, match=r"annotation 1 has category_id 9.* \(3 more: maskx check-dataset"):
        read_coco(awkward.write(tmp_path, content))


def test_image_files_are_read_whole(tmp_path):
    path = awkward.write(tmp_path)
    content = read_json(path)
    assert list(find_image_problems(content, tmp_path)) == []
    content["images"] += [
        {"id": 3, "file_name": "absent.png", "width": 80, "height": 50},
        {"id": 4, "file_name": "short.png", "width": 80, "height": 50},
        {"id": 5, "file_name": "text.jpg", "width": 80, "height": 50},
        {"id": 6, "file_name": "small.png", "width": 80, "height": 50},
    ]
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "short.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("no image")
    Image.new("RGB", (8, 9)).save(tmp_path / "small.png")
    found = {problem.where: problem for problem in find_image_problems(content, tmp_path)}
    assert set(found) == {"absent.png", "short.png", "text.jpg", "small.png"}
    assert all(problem.is_error for problem in found.values())
    assert "truncated" in found["short.png"].detail
    assert found["small.png"].detail == "has 8 x 9 pixels, but the annotation file says 80 x 50"


# ---- maskx check-dataset ----


def check(path, folder, capsys):
    try:
        cli.main(["check-dataset", str(path), str(folder)])
        status = 0
    except SystemExit as stopped:
        status = stopped.code
    return status, capsys.readouterr().out


def test_a_good_dataset_has_nothing_to_remark(tmp_path, capsys):
    status, printed = check(awkward.write(tmp_path, exports.make_sense()), tmp_path, capsys)
    assert status == 0
    assert "truth.json: 2 images, 4 annotations, 2 categories\nNo problems found.\n" in printed
    assert "Training uses 4 objects: 4 with a mask, 0 with a box only.\n" in printed


def test_all_problems_are_reported_at_once_with_their_counts(tmp_path, capsys):
    content = awkward.content()
    for annotation in content["annotations"][:3]:
        annotation["segmentation"] = []
    content["annotations"][1]["category_id"] = 77
    content["annotations"][3]["iscrowd"] = 1
    content["annotations"][3]["bbox"] = [10, 5, 0, 0]
    content["images"].append({"id": 3, "file_name": "absent.png", "width": 80, "height": 50})
    status, printed = check(awkward.write(tmp_path, content), tmp_path, capsys)
    assert status == 1
    errors, remarks = printed.split("Remarks:")
    for line in ("annotations of an unknown category: 1", "annotation 2: has category_id 77"):
        assert line in errors
    assert "image files that do not exist: 1" in errors and "absent.png: is not in" in errors
    for line in ("annotations with an empty segmentation: 3", "crowd regions: 1", "boxes without area: 1"):
        assert line in remarks
    assert "images without annotations: 1" in remarks


def test_deep_images_pipes_and_loops_are_named_and_nothing_is_waited_for(tmp_path):
    path = awkward.write(tmp_path)
    content = read_json(path)
    names = ("deep.png", "pipe.png", "loop.png")
    content["images"] = [
        {"id": i, "file_name": name, "width": 80, "height": 50} for i, name in enumerate(names, start=1)
    ]
    Image.fromarray(np.full((50, 80), 300, np.uint16)).save(tmp_path / "deep.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    found = {problem.where: problem for problem in find_image_problems(content, tmp_path)}
    assert set(found) == set(names)
    assert "its pixels have 16 bits, expected 8" in found["deep.png"].detail


def test_names_are_shown_so_that_they_do_nothing_to_the_terminal():
    content = awkward.content()
    content["images"].append({"id": 9, "file_name": "\x1b[2J\n.png", "width": 0, "height": 1})
    content["categories"].append({"id": 9, "name": "\x1b[31m", "instance_count": "\x1b[0m"})
    report = problem_report([*find_problems(content), *find_image_problems(content, Path("absent"))])
    assert "\x1b" not in report and r"\x1b[2J\n.png" in report


def test_many_problems_of_a_kind_are_counted_and_a_few_named(tmp_path):
    content = awkward.content()
    content["annotations"] = [{**content["annotations"][0], "id": i, "bbox": 3} for i in range(12)]
    report = problem_report(find_problems(content))
    assert "annotations without box: 12" in report and "annotation 4: " in report
    assert "annotation 5: " not in report and "and 7 more" in report


def test_a_file_that_is_no_annotation_file_ends_with_one_sentence(tmp_path, capsys):
    (tmp_path / "truth.json").write_text(json.dumps({"images": [], "annotations": {}}))
    status, _ = check(tmp_path / "truth.json", tmp_path, capsys)
    assert status == 2
    status, _ = check(tmp_path / "truth.json", tmp_path / "absent", capsys)
    assert status == 2


# ---- Exports of labelling tools ----


@pytest.mark.parametrize("tool", exports.EXPECTED, ids=lambda tool: tool.__name__)
def test_what_is_said_of_the_exports_of_labelling_tools(tmp_path, tool, capsys):
    status, kinds = exports.EXPECTED[tool]
    found, printed = check(awkward.write(tmp_path, tool()), tmp_path, capsys)
    assert found == status, printed
    said = [line for line in printed.splitlines() if re.match(r"  \w.*: \d+$", line)]
    assert len(said) == len(kinds) and all(any(kind in line for line in said) for kind in kinds), printed


def test_what_training_uses_is_counted(tmp_path, capsys):
    _, printed = check(awkward.write(tmp_path, exports.encord()), tmp_path, capsys)
    assert printed.endswith(
        "Training uses 4 objects: 0 with a mask, 4 with a box only.\nThere is no mask to learn from.\n"
    )
    content = exports.cvat_masks()
    content["annotations"][2]["bbox"] = [10, 5, 0, 0]
    content["annotations"].append({**content["annotations"][3], "id": 9})
    _, printed = check(awkward.write(tmp_path, content), tmp_path, capsys)
    assert "Training uses 1 objects: 0 with a mask, 1 with a box only.\nNot used: " in printed
    for counted in ("2 crowd regions", "1 boxes without area in their image", "1 objects listed twice"):
        assert counted in printed


# ---- Repairs ----


def test_crowd_regions_become_objects_on_request(tmp_path, capsys):
    path, fixed = awkward.write(tmp_path, exports.cvat_masks()), tmp_path / "fixed.json"
    before = path.read_bytes()
    arguments = ["check-dataset", str(path), str(tmp_path)]
    cli.main([*arguments, "--fix-crowd", "--output", str(fixed)])
    printed = capsys.readouterr().out
    assert "set iscrowd to 0 in 2 annotations" in printed and "crowd regions" not in printed
    assert path.read_bytes() == before
    expected = exports.cvat_masks()
    for annotation in expected["annotations"]:
        annotation["iscrowd"] = 0
    assert json.loads(fixed.read_text()) == expected
    for more in (["--fix-crowd"], ["--output", str(tmp_path / "a.json")]):
        with pytest.raises(SystemExit) as stopped:
            cli.main([*arguments, *more])
        assert stopped.value.code == 2 and "need --output" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        cli.main([*arguments, "--fix-crowd", "--output", str(path)])
    assert stopped.value.code == 2 and path.read_bytes() == before


def test_categories_without_annotations_are_removed_on_request(tmp_path, capsys):
    path, fixed = awkward.write(tmp_path, exports.roboflow()), tmp_path / "fixed.json"
    cli.main(
        ["check-dataset", str(path), str(tmp_path), "--drop-unused-categories", "--output", str(fixed)]
    )
    assert "removed 1 categories: 'animals'" in capsys.readouterr().out
    assert read_coco_file(fixed).class_names == ["cat", "dog"]
