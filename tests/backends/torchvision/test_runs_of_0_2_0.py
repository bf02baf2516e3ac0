"""What version 0.2.0 left is read: see tests/runs_0_2_0."""

import json
from pathlib import Path

import pytest
from PIL import Image

import maskx_d2
from maskx_d2.commands import main as cli
from maskx_d2.runtime.checkpoints import read_checkpoint


def test_its_model_finds_what_it_found(runs_0_2_0):
    detector = maskx_d2.load_detector("torchvision/model_final.ckpt")
    assert detector.style.names == {3: "box", 7: "disk"} and detector.style.with_masks == {3}
    (found,) = detector.coco_results([Image.open("test/1.png").convert("RGB")], [1])
    expected = json.loads(Path("expected.json").read_text())["torchvision"]
    assert len(found) >= len(expected) > 0
    for result, other in zip(found, expected, strict=False):
        assert result["category_id"] == other["category_id"]
        assert result["score"] == pytest.approx(other["score"], abs=1e-6)
        assert result["bbox"] == pytest.approx(other["bbox"], abs=1e-3)
        assert result["segmentation"]["counts"] == other["segmentation"]["counts"]


def test_it_is_resumed(runs_0_2_0):
    options = [
        "--config=torchvision/config.yaml",
        "--ckpt_path=torchvision/last.ckpt",
        "--trainer.max_steps=3",
    ]
    assert cli.main(["torchvision", "fit", *options]) in (None, 0)
    checkpoint = read_checkpoint("torchvision/model_final.ckpt")
    assert checkpoint["global_step"] == 3 and checkpoint["trained_with_masks"] == [0]
