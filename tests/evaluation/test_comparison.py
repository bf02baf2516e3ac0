import base64
import io
import json
import re
from statistics import mean, stdev

import pytest
from PIL import Image

from maskx_d2.commands import main as cli
from maskx_d2.evaluation.average_precision import METRICS
from maskx_d2.evaluation.comparison import compare_groups, compare_runs, headline, markdown_report
from maskx_d2.evaluation.plots import class_difference_plot, training_curves_plot
from maskx_d2.evaluation.report import html_report

from . import runs, synthetic


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three runs on one dataset; the third has boxes only."""
    root = tmp_path_factory.mktemp("runs")
    truth = runs.dataset(root / "data")
    return [
        runs.run(root / "baseline", truth, seed=1),
        runs.run(root / "better & bolder", truth, seed=2),
        runs.run(root / "boxes", truth, seed=3, tasks=("bbox",)),
    ]


@pytest.fixture(scope="module")
def comparison(folders):
    return compare_runs(folders)


def by_group(folder):
    return json.loads((folder / "inference" / "ap_by_group.json").read_text())


# ---- Which runs can be compared ----


def test_runs_are_titled_by_their_folders_and_the_first_is_the_baseline(folders, comparison):
    assert list(comparison.runs) == ["baseline", "better & bolder", "boxes"]
    assert comparison.baseline == "baseline" and comparison.others == ["better & bolder", "boxes"]
    assert compare_runs(folders, baseline=folders[1]).baseline == "better & bolder"


def test_runs_in_folders_of_one_name_are_titled_by_their_paths(tmp_path):
    truth = runs.dataset(tmp_path / "data")
    folders = [runs.run(tmp_path / part / "maskx", truth) for part in ("a", "b")]
    assert list(compare_runs(folders).runs) == [str(folder) for folder in folders]


def test_runs_on_other_data_splits_or_classes_are_refused_with_the_reason(tmp_path, folders):
    content = synthetic.ground_truth()
    other_data = runs.run(
        tmp_path / "data_run", runs.dataset(tmp_path / "data", synthetic.ground_truth(seed=5))
    )
    truth = runs.dataset(tmp_path / "same", content)
    other_split = runs.run(tmp_path / "split_run", truth, with_masks=(1, 3))
    other_classes = runs.run(tmp_path / "class_run", truth)
    path = other_classes / "inference" / "evaluation.json"
    path.write_text(path.read_text().replace("class 3", "class three"))
    for folder, reason in (
        (other_data, r"they were evaluated on different data, .*truth.json and .*truth.json"),
        (
            other_split,
            r"they report on different splits, which differ in 2 classes \(class 9, class 10\); TEST",
        ),
        (other_classes, r"they were evaluated on different classes"),
    ):
        with pytest.raises(ValueError, match=rf"baseline and .*_run cannot be compared: {reason}"):
            compare_runs([folders[0], folder])
    # The same data in another place are the same data.
    assert len(compare_runs([folders[0], runs.run(tmp_path / "fine", truth)]).runs) == 2


def test_a_wrong_choice_of_runs_is_an_error(folders, tmp_path):
    with pytest.raises(ValueError, match=r"the run .*baseline is given twice"):
        compare_runs([folders[0], folders[1], folders[0]])
    with pytest.raises(ValueError, match=r"the baseline .*nowhere is not among the runs"):
        compare_runs(folders, baseline=tmp_path / "nowhere")


# ---- Numbers ----


def test_the_tables_have_every_value_and_its_difference_to_the_baseline(folders, comparison):
    sections = re.split(r"^## ", markdown_report(comparison), flags=re.MULTILINE)[1:]
    assert [section.splitlines()[0] for section in sections] == [
        f"{task} AP on {group}"
        for task in ("Mask", "Box")
        for group in ("A: with masks", "B: boxes only", "all")
    ]
    base, better, boxes = map(by_group, folders)
    keys = [(task, group) for task in ("segm", "bbox") for group in ("A", "B", "all")]
    for (task, group), section in zip(keys, sections, strict=True):
        rows = [[c.strip() for c in row.split("|")[1:-1]] for row in section.splitlines() if "|" in row]
        assert rows[0] == ["", *METRICS]
        for row, run in zip(rows[2:], (base, better, boxes), strict=True):
            for cell, metric in zip(row[1:], METRICS, strict=True):
                value = run.get(task, {}).get(group, {}).get(metric)
                if value is None:
                    assert cell == "-"
                elif run is base:
                    assert cell == f"{value:.1f}"
                else:
                    assert cell == f"{value:.1f} ({value - base[task][group][metric]:+.1f})"


def test_classes_are_sorted_by_their_differences(comparison):
    runs_by_title = comparison.runs
    base = runs_by_title["baseline"].evaluation.by_class["segm"]
    better = runs_by_title["better & bolder"].evaluation.by_class["segm"]
    differences = comparison.class_differences("better & bolder", "segm")
    assert {i: pytest.approx(better[i] - base[i]) for i in range(5)} == dict(differences)
    assert [d for _, d in differences] == sorted((d for _, d in differences), reverse=True)
    assert comparison.class_differences("boxes", "segm") == []


# ---- Plots ----


def test_the_bars_are_named_in_order_and_coloured_by_side(comparison):
    svg = class_difference_plot(comparison, "better & bolder", "segm")
    order = [index for index, _ in comparison.class_differences("better & bolder", "segm")]
    names = re.findall(r">(class \d+)<", svg)
    assert names == [f"class {synthetic.CATEGORY_IDS[index]}" for index in order]
    bars = re.findall(r"fill: (#ff8c00|#00c8ff)", svg)
    assert bars == ["#ff8c00" if index in runs.GROUP_A else "#00c8ff" for index in order]
    assert class_difference_plot(comparison, "boxes", "segm") is None


def test_of_very_many_classes_the_largest_gains_and_losses_are_shown(comparison, monkeypatch):
    monkeypatch.setattr("maskx_d2.evaluation.plots._MOST_CLASSES", 4)
    svg = class_difference_plot(comparison, "better & bolder", "segm")
    order = [index for index, _ in comparison.class_differences("better & bolder", "segm")]
    shown = [order[0], order[1], order[3], order[4]]
    assert re.findall(r">(class \d+)<", svg) == [f"class {synthetic.CATEGORY_IDS[i]}" for i in shown]


def test_training_curves_have_a_panel_for_each_loss_and_a_line_for_each_run(comparison):
    svg = training_curves_plot(comparison)
    for text in ("total_loss", "loss_mask", "baseline", "boxes"):
        assert f">{text}<" in svg
    assert ">loss_cls<" not in svg


# ---- The report ----


def test_the_report_needs_no_other_file(comparison):
    html = html_report(comparison, num_images=3)
    assert html.count('<img src="data:image/jpeg;base64,') == 3
    assert not re.search(r'(?:src|href)="(?!data:|#)', html)
    assert "better &amp; bolder" in html and "better & bolder" not in html
    assert html.count("<svg") == 4  # segm of one run, bbox of two, and the curves


def test_runs_that_are_the_same_in_every_class_are_said_to_be(tmp_path):
    truth = runs.dataset(tmp_path / "data")
    same = compare_runs([runs.run(tmp_path / name, truth) for name in ("one", "two")])
    html = html_report(same, num_images=0)
    assert "Mask AP of two is that of one in every class." in html and html.count("<svg") == 1


def test_the_report_has_the_numbers_of_the_runs(folders, comparison):
    html = html_report(comparison, num_images=0)
    value, base = (by_group(folders[i])["segm"]["B"]["AP75"] for i in (1, 0))
    assert f"{value:.1f}" in html and f"{value - base:+.1f}</span>" in html
    assert "<img" not in html


def test_images_that_are_not_there_are_left_out(tmp_path):
    truth = runs.dataset(tmp_path / "data")
    comparison = compare_runs([runs.run(tmp_path / "run", truth)])
    (tmp_path / "data" / "images" / "1.png").unlink()
    assert html_report(comparison, num_images=20).count("<img") == 11
    truth.unlink()
    html = html_report(comparison, num_images=20)
    assert html.count("<img") == 0 and "The images of the evaluation are no longer in their folder" in html


def test_no_pictures_are_made_with_annotations_that_were_not_evaluated(tmp_path):
    truth = runs.dataset(tmp_path / "data")
    comparison = compare_runs([runs.run(tmp_path / "run", truth)])
    truth.write_text(truth.read_text() + "\n")
    html = html_report(comparison, num_images=20)
    assert "<img" not in html and "The annotations have changed since the evaluation" in html


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ({"size": [100_000, 100_000], "counts": "PlZ~8"}, r"a detection of .* has RLE of the size"),
        ({"size": [20, 20], "counts": "P"}, r"a detection of .* has compressed RLE that is cut off"),
        ({"size": [20, 20], "counts": "`<"}, r"a mask of .* has size \[20, 20\], expected \[160, 160\]"),
    ],
)
def test_masks_that_pycocotools_would_stumble_over_are_named(tmp_path, mask, message):
    folder = runs.run(tmp_path / "run", runs.dataset(tmp_path / "data"))
    path = folder / "inference" / "coco_instances_results.json"
    found = json.loads(path.read_text())
    for detection in found:
        detection["segmentation"] = mask
    path.write_text(json.dumps(found))
    with pytest.raises(ValueError, match=message):
        html_report(compare_runs([folder]), num_images=1, min_score=0)


def test_titles_and_class_names_do_nothing_but_show(tmp_path):
    truth = runs.dataset(tmp_path / "data")
    folders = [runs.run(tmp_path / n, truth, seed=i) for i, n in enumerate(("$a_{$|b", "<i>\x1b[2J`c"))]
    path = folders[0] / "inference" / "evaluation.json"
    content = json.loads(path.read_text())
    content["class_names"][0] = "$\\frac{<b>\x1b"
    for folder in folders:
        (folder / "inference" / "evaluation.json").write_text(json.dumps(content))
    comparison = compare_runs(folders)
    markdown, html = markdown_report(comparison), html_report(comparison)
    for text in (markdown, html):
        assert "\x1b" not in text and "<i>" not in text and "<b>\\" not in text
    assert r"\$a_{\$\|b" in markdown and r"\<i\>\\x1b\[2J\`c" in markdown
    assert "$a_{$|b" in html


def test_images_are_shown_upright_as_their_exif_data_say(tmp_path):
    content = synthetic.ground_truth(images=1)
    content["images"][0].update(width=160, height=160, file_name="1.jpg")
    truth = runs.dataset(tmp_path / "data", content)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    pixels = Image.new("RGB", (160, 160))
    pixels.paste((255, 0, 0), (0, 0, 160, 80))
    pixels.save(tmp_path / "data" / "images" / "1.jpg", exif=exif)
    content["annotations"] = []
    truth.write_text(json.dumps(content))
    comparison = compare_runs([runs.run(tmp_path / "run", truth)])
    html = html_report(comparison, num_images=1)
    shown = Image.open(io.BytesIO(base64.b64decode(html.split("base64,")[1].split('"')[0])))
    # The upper half is on the right now, in the first panel, below its title.
    left, right = (shown.getpixel((x, 200)) for x in (60, 420))
    assert right[0] > 200 and left[0] < 60


def test_the_command_writes_both_files_and_prints_the_tables(folders, tmp_path, capsys):
    out = tmp_path / "out"
    names = [str(folder) for folder in folders]
    cli.main(["compare", *names, "--baseline", names[1], "--output", str(out), "--images", "1"])
    printed = capsys.readouterr().out
    assert (out / "comparison.md").read_text() in printed and str(out / "comparison.html") in printed
    assert "In brackets the difference to better & bolder" in printed
    assert (out / "comparison.html").read_text().count("<img") == 1
    with pytest.raises(SystemExit) as stopped:
        cli.main(["compare", names[0], str(tmp_path), "--output", str(tmp_path / "new")])
    assert stopped.value.code == 2 and not (tmp_path / "new").exists()


# ---- Who wins, and groups of runs ----


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    """Two groups of three runs; each seed has data of its own."""
    root = tmp_path_factory.mktemp("groups")
    truths = [runs.dataset(root / f"data_{i}", synthetic.ground_truth(seed=i)) for i in range(3)]
    return {
        name: [runs.run(root / f"{name}_{i}", truth, seed=first + i) for i, truth in enumerate(truths)]
        for name, first in (("plain", 1), ("new", 11))
    }


def on_b(folder, task="segm"):
    return by_group(folder)[task]["B"]["AP"]


def test_the_first_line_says_who_wins_on_b_and_by_how_much(folders, comparison):
    base, other = on_b(folders[0]), on_b(folders[1])
    best, gain = ("better & bolder", other - base) if other > base else ("baseline", base - other)
    second = ({"baseline", "better & bolder"} - {best}).pop()
    won = f"mask AP {max(base, other):.1f}, {gain:+.1f} over {second}"
    expected = f"On the classes with boxes only {best} wins: {won}."
    assert headline(comparison) == expected
    assert f"**{expected}**" in markdown_report(comparison)
    page = html_report(comparison, num_images=0)
    assert page.index("wins: mask AP") < page.index("<table")
    # Of two runs without masks it is that of boxes; one alone wins nothing.
    assert "box AP" in headline(compare_runs([folders[2], folders[0]]))
    assert headline(compare_runs(folders[:1])) is None


def test_groups_have_means_deviations_and_gains_seed_by_seed(groups):
    comparison = compare_groups(groups, baseline="plain")
    plain, new = ([on_b(folder) for folder in groups[name]] for name in ("plain", "new"))
    gains = [b - a for a, b in zip(plain, new, strict=True)]
    row = next(
        line
        for section in markdown_report(comparison).split("## ")
        if section.startswith("Mask AP on B")
        for line in section.splitlines()
        if line.startswith("| new")
    )
    expected = f"{mean(new):.1f} ± {stdev(new):.1f} ({mean(gains):+.1f} ± {stdev(gains):.1f})"
    assert row.split("|")[2].strip() == expected
    page = html_report(comparison, num_images=1)
    assert f"{mean(gains):+.1f} ± {stdev(gains):.1f}</span>" in page and page.count("<img") == 1
    assert all(str(folder) in page for folders in groups.values() for folder in folders)
    first, second = ("new", "plain") if mean(new) > mean(plain) else ("plain", "new")
    ahead = [g if first == "new" else -g for g in gains]
    won = f"better in {sum(g > 0 for g in ahead)} of 3 seeds"
    assert headline(comparison).endswith(
        f" over 3 seeds, {mean(ahead):+.1f} ± {stdev(ahead):.1f} over {second} ({won})."
    )


def test_groups_that_cannot_be_compared_are_refused(groups, tmp_path):
    plain, new = groups.values()
    with pytest.raises(ValueError, match=r"different numbers of runs \(a 3, b 2\), expected the same"):
        compare_groups({"a": plain, "b": new[:2]})
    with pytest.raises(ValueError, match=r"plain_0 and .*new_1 cannot be compared: .* on different data"):
        compare_groups({"a": plain[:2], "b": new[1::-1]})
    with pytest.raises(ValueError, match=r"the run .*plain_0 is given twice"):
        compare_groups({"a": plain, "b": [plain[0], *new[1:]]})
    with pytest.raises(ValueError, match=r"the baseline c is not among the groups a, b"):
        compare_groups({"a": plain, "b": new}, baseline="c")
    truth = runs.dataset(tmp_path / "data", synthetic.ground_truth(seed=9))
    other = [runs.run(tmp_path / name, truth, with_masks=(1, 3)) for name in ("x", "y")]
    with pytest.raises(ValueError, match=r"plain_0 and .*x cannot be compared: they report on diff"):
        compare_groups({"a": [plain[0], other[0]], "b": [new[0], other[1]]})


def test_the_command_takes_groups(groups, tmp_path, capsys):
    words = [f"--group={name}={','.join(map(str, folders))}" for name, folders in groups.items()]
    cli.main(["compare", *words, "--baseline", "new", "--output", str(tmp_path / "out"), "--images", "0"])
    printed = capsys.readouterr().out
    assert "In brackets the difference to new. Mean ± standard deviation of 3 seeds" in printed
    for wrong, message in (
        ([*words, str(groups["new"][0])], "give either runs or groups of runs (--group)"),
        ([], "give either runs or groups of runs"),
        ([words[0], words[0]], "--group is given twice with one of the names plain, plain"),
        (["--group=plain"], "plain is not NAME=RUN_DIR,RUN_DIR"),
        (["--group=a=,"], "a=, is not NAME=RUN_DIR,RUN_DIR"),
    ):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["compare", *wrong, "--output", str(tmp_path / "no")])
        assert stopped.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("way", ["..", "absolute", "link"])
def test_images_outside_of_their_folder_are_not_shown_unless_asked_for(tmp_path, way):
    content = synthetic.ground_truth(images=2)
    truth = runs.dataset(tmp_path / "data", content)
    elsewhere = tmp_path / "private" / content["images"][0]["file_name"]
    elsewhere.parent.mkdir()
    inside = tmp_path / "data" / "images" / elsewhere.name
    inside.rename(elsewhere)
    name = {"..": f"../../private/{elsewhere.name}", "absolute": str(elsewhere)}.get(way, elsewhere.name)
    if way == "link":
        inside.symlink_to(elsewhere)
    content["images"][0]["file_name"] = name
    truth.write_text(json.dumps(content))
    comparison = compare_runs([runs.run(tmp_path / name, truth) for name in ("one", "two")])
    message = r"truth.json is outside of .*images, where the images should be: .*--images-root"
    with pytest.raises(ValueError, match=message):
        html_report(comparison)
    assert html_report(comparison, images_root=tmp_path).count("data:image/jpeg") == (way == "absolute")
    (tmp_path / "data" / "images").rename(tmp_path / "moved")
    assert "data:image/jpeg" not in html_report(comparison)
    if way == "link":
        moved = html_report(comparison, images_root=elsewhere.parent)
        assert moved.count("data:image/jpeg") == 1
