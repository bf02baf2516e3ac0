"""
What comes from somebody else, changed at random: it works, or one sentence says why not, and nothing is
left half-written. A few examples of each here; ``make fuzz`` goes on for half an hour.
"""

import json
import shutil

import pycocotools.mask as mask_util
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskx_d2.data.class_names import read_class_names
from maskx_d2.data.class_splits import class_split_report
from maskx_d2.data.coco_file import read_json
from maskx_d2.data.coco_remarks import find_problems
from maskx_d2.data.dataset_check import find_image_problems, problem_report
from maskx_d2.data.pycocotools_coco import read_coco
from maskx_d2.data.visual_genome import convert_visual_genome
from maskx_d2.evaluation.average_precision import class_precisions
from maskx_d2.evaluation.comparison import compare_runs, markdown_report
from maskx_d2.evaluation.report import html_report

from .data import awkward, genome
from .evaluation import runs, synthetic
from .mutations import mutated

pytestmark = pytest.mark.fuzz


def works_or_says_why(function, *, folder):
    """What the function returns, or None if it ends with one sentence; there is no partial file then."""
    try:
        return function()
    except (ValueError, FileNotFoundError) as error:
        sentence = str(error)
        assert sentence and len(sentence) < 2000, sentence
        assert str(folder) in sentence or "split" in sentence, sentence
        return None
    finally:
        assert not list(folder.rglob("*.partial"))


@pytest.fixture(scope="module")
def awkward_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("awkward")
    awkward.write(folder)
    return folder


VARIANTS = [awkward.changed(change) for change, _, _ in awkward.WORKS.values()]


@given(st.sampled_from(VARIANTS).flatmap(mutated))
def test_annotation_files(awkward_folder, content):
    path = awkward_folder / "changed.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    read = works_or_says_why(lambda: read_json(path), folder=awkward_folder)
    if read is None:
        return
    problems = [*find_problems(read), *find_image_problems(read, awkward_folder)]
    assert problem_report(problems) is not None
    coco = works_or_says_why(lambda: read_coco(path), folder=awkward_folder)
    assert (coco is None) == any(problem.is_error for problem in find_problems(read_json(path)))
    if coco is None:
        return
    for annotation in coco.dataset["annotations"]:
        if annotation.get("segmentation"):
            rle = coco.annToRLE(annotation)
            assert mask_util.area(rle) == mask_util.decode(rle).sum()
    works_or_says_why(lambda: class_split_report("voc", coco), folder=awkward_folder)
    found = [
        {"image_id": i, "category_id": c, "bbox": [0, 0, 9, 9], "score": 0.5}
        for i in coco.imgs
        for c in coco.cats
    ]
    for result in found:
        size = coco.imgs[result["image_id"]]
        (mask,) = mask_util.frPyObjects([[0, 0, 9, 0, 9, 9]], size["height"], size["width"])
        result["segmentation"] = mask
    for task in ("bbox", "segm"):
        assert class_precisions(coco, found, task).shape[2] == len(coco.cats)


@given(st.binary(max_size=60) | st.text(st.characters(codec=None), max_size=60))
def test_lists_of_classes(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("classes")
    path = folder / "names.txt"
    if isinstance(content, str):
        content = content.encode("utf-8", "surrogatepass")
    path.write_bytes(content)
    names = works_or_says_why(lambda: read_class_names(path), folder=folder)
    assert names is None or all(name.strip() for name in names)
    works_or_says_why(lambda: class_split_report(str(path)), folder=folder)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    truth = runs.dataset(folder / "data", synthetic.ground_truth(images=2))
    runs.run(folder / "run", truth)
    runs.run(folder / "other", truth, seed=2)
    return folder


@settings(max_examples=settings().max_examples // 3)  # a report takes a second
@given(
    st.sampled_from(["evaluation.json", "coco_instances_results.json", "metrics.json"]),
    st.data(),
)
def test_run_folders(run_folder, name, data):
    broken = run_folder / "broken"
    shutil.copytree(run_folder / "run", broken)
    try:
        path = broken / name if name == "metrics.json" else broken / "inference" / name
        if data.draw(st.integers(0, 4)) == 0:
            content = bytearray(path.read_bytes())
            place = data.draw(st.integers(0, len(content) - 1))
            content[place : place + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
            path.write_bytes(content)
        elif name == "metrics.json":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            changed = data.draw(mutated(lines))
            path.write_text("".join(json.dumps(line) + "\n" for line in changed), encoding="utf-8")
        else:
            path.write_text(json.dumps(data.draw(mutated(json.loads(path.read_text())))))

        def compare():
            comparison = compare_runs([broken, run_folder / "other"])
            return markdown_report(comparison), html_report(comparison, num_images=1, min_score=0)

        reports = works_or_says_why(compare, folder=run_folder)
        for report in reports or ():
            report.encode("utf-8")
            assert "\x1b" not in report
    finally:
        shutil.rmtree(broken)


@pytest.fixture(scope="module")
def genome_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("genome")
    return folder, genome.write(folder, num_images=8, num_synsets=90)


@given(st.integers(0, 2), st.data())
def test_visual_genome(genome_files, number, data):
    folder, paths = genome_files
    output = folder / "out"
    whole = paths[number].read_bytes()
    paths[number].write_text(json.dumps(data.draw(mutated(json.loads(whole)))), encoding="utf-8")
    try:
        summary = works_or_says_why(
            lambda: convert_visual_genome(*paths, output, num_classes=5), folder=folder
        )
        written = sorted(path.name for path in output.iterdir()) if output.is_dir() else []
        assert written == (["vg3k_test.json", "vg3k_train.json", "vg3k_val.json"] if summary else [])
        for name in written:
            works_or_says_why(lambda name=name: read_coco(output / name), folder=folder)
    finally:
        paths[number].write_bytes(whole)
        shutil.rmtree(output, ignore_errors=True)
