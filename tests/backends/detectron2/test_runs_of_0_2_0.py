"""What version 0.2.0 left is read: see tests/runs_0_2_0."""

from pathlib import Path

import pytest
import torch

import maskx_d2
from maskx_d2.backends.detectron2 import command_line
from maskx_d2.backends.detectron2.config import load_config
from maskx_d2.commands import main as cli

from ...runs_0_2_0.check import check_finds_what_it_found
from . import tiny


@pytest.fixture
def run(runs_0_2_0) -> Path:
    yield runs_0_2_0 / "detectron2"
    tiny.forget("fx_train", "fx_test")


def test_its_model_finds_what_it_found(run):
    detector = maskx_d2.load_detector(
        run / "model_final.pth", run / "config.yaml", overrides=["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0]
    )
    check_finds_what_it_found(detector, "detectron2")


def test_old_keys_of_its_config_have_new_names(run):
    cfg = load_config(str(run / "config.yaml"))
    assert cfg.SOLVER.MASKX_OPTIMIZER == "AdamW" and "OPTIMIZER" not in cfg.SOLVER
    assert [entry[0] for entry in cfg.DATASETS.MASKX_REGISTER] == ["fx_train", "fx_test"]
    assert cfg.MODEL.ROI_MASK_HEAD.MASKX_PREDICTOR == "transfer"


def test_it_is_resumed(run):
    config = ["--config-file", str(run / "config.yaml"), "--resume"]
    overrides = ["SOLVER.MAX_ITER", "3", "OUTPUT_DIR", str(run)]
    command_line.main([*config, *overrides])
    checkpoint = torch.load(run / "model_final.pth", weights_only=True)
    assert checkpoint["iteration"] == 2
    classes = {"names": ["box", "disk"], "category_ids": [3, 7], "with_masks": [0], "by_teacher": []}
    assert checkpoint["classes"] == classes
    with pytest.raises(SystemExit) as stopped:
        command_line.main([*config, *overrides, "SOLVER.MASKX_OPTIMIZER", "SGD"])
    assert stopped.value.code == 2


def test_it_is_compared_with_one_of_the_other_backend(run, tmp_path, capsys):
    assert cli.main(["compare", str(run), "torchvision", "--output", str(tmp_path / "report")]) in (None, 0)
    assert "detectron2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "old", "new"),
    [
        ("SOLVER: {OPTIMIZER: AdamW}", "SOLVER.OPTIMIZER", "SOLVER.MASKX_OPTIMIZER"),
        ("TEST: {CLASS_SPLIT: voc}", "TEST.CLASS_SPLIT", "TEST.MASKX_CLASS_SPLIT"),
    ],
)
def test_old_keys_that_a_person_wrote_are_named_with_the_new_ones(text, old, new, tmp_path):
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"own.yaml: Key {old} was renamed to {new}"):
        load_config(str(tmp_path / "own.yaml"))
    value = "voc" if "SPLIT" in old else "AdamW"
    (tmp_path / "own.yaml").write_text("")
    with pytest.raises(ValueError, match=rf"Key {old} was renamed to {new}"):
        load_config(str(tmp_path / "own.yaml"), [old, value])
