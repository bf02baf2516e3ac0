"""The experiments on Visual Genome: every config in configs/visual_genome/."""

import itertools
import re
from pathlib import Path

import pytest

from maskx_d2.backends.detectron2.box_predictor import GatheredFastRCNNOutputLayers
from maskx_d2.backends.detectron2.class_split import check_num_classes, evaluated_classes_with_masks
from maskx_d2.backends.detectron2.config import load_config
from maskx_d2.backends.detectron2.frozen_detector import FrozenDetectorRCNN

from . import tiny

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
FOLDER = CONFIGS / "visual_genome"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))

STAGE_1 = {"batch": 8, "rate": 0.01, "length": 180000, "steps": (120000, 160000)}
STAGE_2 = {"batch": 16, "rate": 0.02, "length": 90000, "steps": (60000, 80000)}
SCHEDULES = {
    "faster_rcnn_R_50_FPN": STAGE_1,
    "faster_rcnn_R_101_FPN": STAGE_1,
    "maskx_stage_wise_R_50_FPN": STAGE_2,
    "maskx_stage_wise_R_101_FPN": STAGE_1,
    "maskx_inference_R_50_FPN": STAGE_2,
    "maskx_inference_R_101_FPN": STAGE_2,
    "authors_R_50_FPN": STAGE_2,
    "maskx_end_to_end_R_50_FPN": {**STAGE_1, "batch": 16, "rate": 0.02},
}


def config(name):
    return load_config(str(FOLDER / f"{name}.yaml"))


def test_every_experiment_is_there_and_none_is_unknown():
    assert set(NAMES) == set(SCHEDULES)


@pytest.mark.parametrize("name", NAMES)
def test_schedule_classes_and_results_are_the_experiments(name):
    cfg = config(name)
    solver, expected = cfg.SOLVER, SCHEDULES[name]
    assert (solver.IMS_PER_BATCH, solver.BASE_LR) == (expected["batch"], expected["rate"])
    assert (solver.MAX_ITER, solver.STEPS) == (expected["length"], expected["steps"])
    assert solver.REFERENCE_WORLD_SIZE == 8 and solver.WEIGHT_DECAY == 0.0001
    assert cfg.MODEL.RESNETS.DEPTH == (101 if "101" in name else 50)
    assert cfg.MODEL.WEIGHTS.endswith("R-101.pkl" if "101" in name else "R-50.pkl") or "output" in (
        cfg.MODEL.WEIGHTS
    )
    assert cfg.OUTPUT_DIR == f"output/visual_genome/{name}"
    for dataset in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        check_num_classes(cfg, dataset)
        assert evaluated_classes_with_masks(cfg, dataset) == list(range(80))
    assert cfg.DATASETS.CLASSES_WITH_MASKS == "all"


def test_each_stage_reads_what_the_one_before_leaves():
    for depth in ("R_50", "R_101"):
        names = ("faster_rcnn", "maskx_stage_wise", "maskx_inference")
        stages = [config(f"{name}_{depth}_FPN") for name in names]
        for before, after in itertools.pairwise(stages):
            assert f"{before.OUTPUT_DIR}/model_final.pth" == after.MODEL.WEIGHTS


def test_the_stages_are_trained_on_visual_genome_then_on_coco():
    stage_1, stage_2 = config("faster_rcnn_R_50_FPN"), config("maskx_stage_wise_R_50_FPN")
    assert stage_1.DATASETS.TRAIN == ("vg3k_train",) and not stage_1.MODEL.MASK_ON
    assert stage_2.DATASETS.TRAIN == ("coco_2017_train_vg3k",) and stage_2.MODEL.MASK_ON
    mixed = config("maskx_end_to_end_R_50_FPN")
    assert mixed.DATASETS.TRAIN == ("coco_2017_train_vg3k", "vg3k_train")
    assert mixed.DATALOADER.MASKX_DATASET_RATIO == [1, 1]


@pytest.mark.parametrize("name", NAMES)
def test_the_model_builds_with_all_classes(name):
    cfg = config(name)
    cfg.MODEL.DEVICE, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS, cfg.MODEL.RESNETS.WIDTH_PER_GROUP = "cpu", 16, 8
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 8
    model = tiny.build(cfg)
    assert isinstance(model, FrozenDetectorRCNN) is ("stage_wise" in name)
    predictor = model.roi_heads.box_predictor
    assert isinstance(predictor, GatheredFastRCNNOutputLayers)
    assert len(predictor.cls_score.weight) == 3002 and len(predictor.bbox_pred.weight) == 12004


def test_the_table_of_experiments_names_every_config():
    text = (CONFIGS.parent / "docs" / "visual-genome.md").read_text()
    assert set(re.findall(r"\]\(\.\./configs/visual_genome/(\w+)\.yaml\)", text)) == set(NAMES)
