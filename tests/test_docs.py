"""The pages: their links lead somewhere, the site builds, and what they say to type runs."""

import ast
import inspect
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from maskx_d2.backends.torchvision.data_module import CocoDataModule
from maskx_d2.commands import main as cli
from maskx_d2.demo import on_torchvision
from maskx_d2.recipes.built_in import RECIPES

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDERS = (".", "docs", "docs/results", "configs", "datasets", "benchmarks")
PAGES = sorted(page for folder in FOLDERS for page in (REPOSITORY / folder).glob("*.md"))


def without_code(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page):
    """Of its headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.*)$", without_code(page.read_text()), flags=re.MULTILINE)
    plain = [re.sub(r"<[^>]+>|[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page):
    assert len(PAGES) > 12
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        other = page if not path else (page.parent / path).resolve()
        assert other.exists(), target
        assert not anchor or anchor in anchors(other), target


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocstrings")
    pytest.importorskip("material")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_has_every_page_and_loads_nothing_from_other_hosts(site):
    pages = {path.relative_to(site).as_posix() for path in site.rglob("index.html")}
    names = {path.stem for path in (REPOSITORY / "docs").glob("*.md")} - {"index"}
    assert pages >= {"index.html", *(f"{name}/index.html" for name in names)}
    for path in site.rglob("*.html"):
        text = path.read_text()
        loaded = re.findall(r"<(?:script|img|iframe)[^>]*\ssrc=\"?([^\s\">]+)", text)
        loaded += re.findall(
            r"<link[^>]*rel=\"?(?:stylesheet|preconnect|icon)\"?[^>]*href=\"?([^\s\">]+)", text
        )
        loaded += re.findall(
            r"<link[^>]*href=\"?([^\s\">]+)\"?[^>]*rel=\"?(?:stylesheet|preconnect|icon)", text
        )
        assert loaded and not [address for address in loaded if "//" in address], path


def test_the_api_page_has_docstrings_and_no_link_out_of_the_site(site):
    text = (site / "api" / "index.html").read_text()
    assert "Mask weights predicted from class embeddings" in text
    assert "What COCOeval finds, class by class" in text
    assert ":func:" not in text and ":class:" not in text
    assert 'href="../../benchmarks' not in (site / "index.html").read_text()


def commands(page):
    """The lines of its shell code, until the part that needs more machines."""
    text = page.read_text().split("## Millions of images")[0]
    for block in re.findall(r"^```sh\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        yield shlex.split(block.replace("\\\n", " "))


SHORTER = {"--train": "24", "--test": "3", "--trainer.max_steps": "2", "SOLVER.MAX_ITER": "2"}


def test_the_commands_of_your_data_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("configs", "train_net.py"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    done = []
    for words in commands(REPOSITORY / "docs" / "your-data.md"):
        if find_spec("detectron2") is None and "detectron2" in " ".join(words):
            continue
        if words[1] == "cross-validate":  # where --train is a flag
            words += ["--steps", "10", "--channels", "8", "--folds", "2", "--recipes", "class_agnostic"]
        else:
            for place, word in enumerate(words[:-1]):
                words[place + 1] = SHORTER.get(word, words[place + 1])
        if words[0] == "maskx":
            cli.main(words[1:])
        else:
            run = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True)
            assert run.returncode == 0, (words, run.stderr[-2000:])
        done.append(words[1])
    with_detectron2 = ["train_net.py", "compare"] if find_spec("detectron2") else []
    expected = [
        "prepare",
        "check-dataset",
        "torchvision",
        "torchvision",
        "cross-validate",
        *with_detectron2,
        "predict",
        "fill-masks",
    ]
    assert sorted(done) == sorted(expected)
    assert "segmentation_source" in (tmp_path / "filled.json").read_text()


# ---- One recipe in documents, configs and the demo ----


def test_the_recipe_for_your_data_is_that_of_the_configs():
    text = (REPOSITORY / "docs" / "your-data.md").read_text()
    recipe = re.findall(r"`(--model\.(?:weights_backbone|embedding_dropout)[^`]*)`", text)
    flags = shlex.split(" ".join(recipe))
    found = dict(zip(flags[::2], flags[1::2], strict=True))
    base = yaml.safe_load((REPOSITORY / "configs" / "Base-RCNN-FPN.yaml").read_text())["SOLVER"]
    supervised = REPOSITORY / "configs" / "beyond" / "maskx_box_supervised_R_50_FPN_1x.yaml"
    head = yaml.safe_load(supervised.read_text())["MODEL"]["ROI_MASK_HEAD"]
    # The linear scaling rule, for the batch size of the data module.
    batch_size = inspect.signature(CocoDataModule).parameters["batch_size"].default
    rate = base["BASE_LR"] / base["IMS_PER_BATCH"]
    assert float(found["--model.learning_rate"]) == pytest.approx(rate * batch_size)
    steps, scale = int(found["--trainer.max_steps"]), int(found["--trainer.max_steps"]) / base["MAX_ITER"]
    assert steps == round(base["MAX_ITER"] * scale)
    milestones = yaml.safe_load(found["--model.milestones"])
    assert milestones == [round(step * scale) for step in ast.literal_eval(base["STEPS"])]
    assert float(found["--model.embedding_dropout"]) == head["TRANSFER"]["EMBEDDING_DROPOUT"]
    expected = {name.lower(): value for name, value in head["BOX_SUPERVISION"].items()}
    expected |= {name: round(expected[name] * scale) for name in ("start", "warmup")}
    assert yaml.safe_load(found["--model.box_supervision"]) == expected


def test_box_supervision_has_the_same_weights_everywhere():
    expected = dict(RECIPES["maskx_box_supervised"].box_supervision)
    demo = on_torchvision._MASK_BRANCHES["maskx_box_supervised"]
    found = {"the demo on torchvision": demo["box_supervision"]}
    for path in (REPOSITORY / "configs").rglob("*.yaml"):
        model = yaml.safe_load(path.read_text()).get("MODEL", {})
        keys = model.get("ROI_MASK_HEAD", {}).get("BOX_SUPERVISION", {})
        found[path] = {key.lower(): value for key, value in keys.items()}
    small = REPOSITORY / "configs" / "torchvision" / "small_resnet18_fpn.yaml"
    found[small] = yaml.safe_load(small.read_text())["model"]["box_supervision"]
    weights = {
        path: {name: value for name, value in options.items() if name not in ("start", "warmup")}
        for path, options in found.items()
    }
    has_weights = {path: of_path for path, of_path in weights.items() if of_path}
    assert len(has_weights) >= 4
    assert {path: of_path for path, of_path in has_weights.items() if of_path != expected} == {}
