"""The configs that go beyond the paper."""

import re
from pathlib import Path

import pytest

from maskx_d2.backends.detectron2.config import load_config

from . import tiny

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
ONE, THREE = (90000, (60000, 80000), 16, 0.02), (270000, (210000, 250000), 16, 0.02)
DEEP = (70000, (50000, 65000), 64, 0.12)
# Schedule, meta-architecture, predictor, trunk and RoIs, whether boxes supervise.
EXPECTED = {
    "maskx_box_supervised_R_50_FPN_1x": (ONE, "GeneralizedRCNN", "transfer", "convs", True),
    "maskx_box_supervised_stage_wise_R_50_FPN_1x": (ONE, "FrozenDetectorRCNN", "transfer", "convs", True),
    "maskx_box_supervised_R_50_FPN_3x": (THREE, "GeneralizedRCNN", "transfer", "convs", True),
    "class_agnostic_deep_R_50_FPN": (DEEP, "GeneralizedRCNN", "agnostic", "hourglass_52", False),
    "maskx_deep_R_50_FPN": (DEEP, "GeneralizedRCNN", "transfer", "hourglass_52", False),
}


def test_every_config_is_there_and_none_is_unknown():
    assert {path.stem for path in (CONFIGS / "beyond").glob("*.yaml")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_it_is_what_its_name_says_and_builds(name):
    schedule, meta_architecture, predictor, trunk, box_supervised = EXPECTED[name]
    cfg = load_config(str(CONFIGS / "beyond" / f"{name}.yaml"))
    solver, head = cfg.SOLVER, cfg.MODEL.ROI_MASK_HEAD
    assert (solver.MAX_ITER, solver.STEPS, solver.IMS_PER_BATCH, solver.BASE_LR) == schedule
    assert cfg.MODEL.META_ARCHITECTURE == meta_architecture
    assert (head.MASKX_PREDICTOR, head.TRUNK) == (predictor, trunk)
    assert cfg.DATASETS.CLASSES_WITH_MASKS == "voc"
    assert cfg.OUTPUT_DIR == f"output/beyond/{name}"
    assert head.TRANSFER.EMBEDDING_DROPOUT == (0.5 if predictor == "transfer" else 0)
    deep = trunk != "convs"
    assert head.TRAIN_ROIS == ("ground_truth" if deep else "proposals")
    assert head.POOLER_RESOLUTION == (32 if deep else 14)

    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS, cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 32, 8
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 8
    head.CONV_DIM = 32 if deep else 8
    mask_head = tiny.build(cfg).roi_heads.mask_head
    assert (mask_head.box_supervision is not None) is box_supervised
    assert (mask_head.hourglass is not None) is deep
    assert (mask_head.predictor.mlp_branch is None) is deep


def test_the_table_names_every_config_and_no_other():
    text = (CONFIGS.parent / "docs" / "experiments.md").read_text()
    linked = re.findall(r"\]\(\.\./configs/beyond/(\w+)\.yaml\)", text)
    assert sorted(linked) == sorted(EXPECTED)
