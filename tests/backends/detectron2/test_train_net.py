"""train_net.py as users call it, on real COCO images."""

import json
import math
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from maskx_d2.commands import main as cli

from ...screen import assert_says_nothing_but_bars

REPOSITORY = Path(__file__).resolve().parents[3]
SMALL = [
    *("INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MAX_SIZE_TRAIN", "160", "INPUT.MIN_SIZE_TEST", "96"),
    *("INPUT.MAX_SIZE_TEST", "160", "SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0"),
    *("SOLVER.BASE_LR", "0.001", "MODEL.WEIGHTS", "", "SEED", "1", "SOLVER.STEPS", "()"),
    # Without pre-trained weights a frozen BatchNorm would make the activations explode.
    *("MODEL.RESNETS.NORM", "GN", "MODEL.FPN.NORM", "GN", "MODEL.BACKBONE.FREEZE_AT", "0"),
    *("SOLVER.REFERENCE_WORLD_SIZE", "0"),
    *("MODEL.RPN.PRE_NMS_TOPK_TEST", "100", "MODEL.RPN.POST_NMS_TOPK_TEST", "20"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "64"),
]
# The full MLP branch has 157 million weights: here the reduced form.
SMALL_HEAD = ["MODEL.ROI_MASK_HEAD.MLP_BRANCH.REDUCED_CHANNELS", "8"]


def train_net(root, *arguments):
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "train_net.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "DETECTRON2_DATASETS": str(root)},
    )


@pytest.fixture
def datasets(coco_mini, tmp_path):
    """A folder as datasets/README.md describes it, with 4 images to evaluate on."""
    coco = tmp_path / "datasets" / "coco"
    (coco / "annotations").mkdir(parents=True)
    for images in ("train2017", "val2017"):
        (coco / images).symlink_to(coco_mini / images)
        content = json.loads((coco_mini / "annotations" / f"instances_{images}.json").read_text())
        if images == "val2017":
            content["images"] = content["images"][:4]
            kept = {image["id"] for image in content["images"]}
            content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
        (coco / "annotations" / f"instances_{images}.json").write_text(json.dumps(content))
    return tmp_path / "datasets"


def logged(folder):
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return {key: value for line in lines for key, value in line.items()}


def test_mask_x_trains_on_coco_is_evaluated_on_both_sides_and_compared(datasets, tmp_path):
    config = ["--config-file", "configs/maskx_R_50_FPN_1x.yaml"]
    out = tmp_path / "out"
    overrides = [*SMALL, *SMALL_HEAD, "OUTPUT_DIR", out, "SOLVER.MAX_ITER", 5, "MODEL.DEVICE", "cpu"]
    done = train_net(datasets, *config, *overrides)
    assert done.returncode == 0, done.stderr[-3000:]
    values = logged(out)
    for name in ("total_loss", "loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc"):
        assert math.isfinite(values[name]) and values[name] > 0, name
    assert 0 < values["roi_head/num_mask_samples"] < values["roi_head/num_fg_samples"]
    by_group = json.loads((out / "inference" / "ap_by_group.json").read_text())
    assert set(by_group) == {"bbox", "segm"}
    assert all(0 <= by_group[t][g]["AP"] <= 100 for t in by_group for g in ("A", "B", "all"))
    data, *between, last = done.stdout.strip().split("\n\n")
    assert re.fullmatch(
        r"Training on coco_2017_train: \d+ images; A: 20 classes, [\d,]+ objects, [\d,]+ with a mask; "
        r"B, boxes only: 60 classes, [\d,]+ objects; not used: \d+ crowd regions\n"
        r"AP on coco_2017_val, with at most 100 detections of a class in an image",
        data,
    )
    assert len(between) == 1 and "| mask | B: boxes only |" in between[0]
    assert last.startswith(f"In {out}:\n  model_final.pth ") and "log.txt" in last
    assert_says_nothing_but_bars(done.stderr, "training", "evaluating on coco_2017_val")
    assert "Starting training from iteration 0" in (out / "log.txt").read_text()

    again = train_net(
        datasets, *config, "--eval-only", *overrides, "MODEL.WEIGHTS", out / "model_final.pth",
        "OUTPUT_DIR", tmp_path / "again",
    )  # fmt: skip
    assert again.returncode == 0, again.stderr[-3000:]
    assert json.loads((tmp_path / "again" / "inference" / "ap_by_group.json").read_text()) == by_group

    report = tmp_path / "report"
    cli.main(["compare", str(out), "--output", str(report), "--images", "2", "--min-score", "0.05"])
    html = (report / "comparison.html").read_text()
    assert html.count('<img src="data:image/jpeg') == 2 and ">loss_mask<" in html
    assert "20 classes trained with" in " ".join(html.split()) and "60 with boxes only" in html


def test_stage_wise_training_goes_from_stage_1_to_stage_2(datasets, tmp_path):
    stage1, stage2 = tmp_path / "stage1", tmp_path / "stage2"
    short = ["SOLVER.MAX_ITER", 2, "DATASETS.TEST", "()"]
    done = train_net(
        datasets,
        "--config-file",
        "configs/faster_rcnn_R_50_FPN_1x.yaml",
        *SMALL,
        *short,
        "OUTPUT_DIR",
        stage1,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    config = ["--config-file", "configs/maskx_stage_wise_R_50_FPN_1x.yaml"]
    weights = ["MODEL.WEIGHTS", stage1 / "model_final.pth"]
    done = train_net(datasets, *config, *SMALL, *SMALL_HEAD, *short, *weights, "OUTPUT_DIR", stage2)
    assert done.returncode == 0, done.stderr[-3000:]
    # Detectron2 logs the parts of a loss where there is more than one.
    assert {name for name in logged(stage2) if "loss" in name} == {"total_loss"}
    assert logged(stage2)["total_loss"] > 0


def test_without_a_config_it_says_how_to_give_one(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train_net.py"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(REPOSITORY / "train_net.py"), run_name="__main__")
    assert (
        "--config-file configs/maskx_R_50_FPN_1x.yaml" in f"{stopped.value.code}{capsys.readouterr().err}"
    )
