"""The experiments of the paper: every config in configs/ and configs/ablations/."""

import re
from pathlib import Path

import numpy as np
import pytest
from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.engine import DefaultTrainer

from maskx_d2.backends.detectron2.config import load_config

from . import tiny

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
NAMES = sorted(
    str(path.relative_to(CONFIGS))
    for folder in (CONFIGS, CONFIGS / "ablations")
    for path in folder.glob("*.yaml")
    if not path.name.startswith("Base")
)

# What distinguishes the runs: meta-architecture, depth, predictor, MLP layers, embedding, layers of T,
# activation, stop-grad. None expands to Detectron2's own mask head, "" for no mask head.
MASKX = {
    "meta": "GeneralizedRCNN",
    "depth": 50,
    "predictor": "transfer",
    "mlp": 1,
    "embedding": "cls+box",
    "layers": 2,
    "activation": "leaky_relu",
    "stop_grad": True,
}
TRANSFER = {**MASKX, "mlp": 0}
STAGE_WISE = {**TRANSFER, "meta": "FrozenDetectorRCNN"}
EXPECTED = {
    "maskx_R_50_FPN_1x": MASKX,
    "maskx_R_50_FPN_1x_detectron1": MASKX,
    "maskx_R_101_FPN_1x": {**MASKX, "depth": 101},
    "maskx_X_101_32x8d_FPN_1x": {**MASKX, "depth": 101},
    "maskx_stage_wise_R_50_FPN_1x": {**STAGE_WISE, "mlp": 1},
    "class_agnostic_R_50_FPN_1x": {**TRANSFER, "predictor": "agnostic"},
    "class_agnostic_R_101_FPN_1x": {**TRANSFER, "predictor": "agnostic", "depth": 101},
    "class_agnostic_X_101_32x8d_FPN_1x": {**TRANSFER, "predictor": "agnostic", "depth": 101},
    "mask_rcnn_R_50_FPN_1x": {"meta": "GeneralizedRCNN", "depth": 50, "predictor": None},
    "mask_rcnn_R_101_FPN_1x": {"meta": "GeneralizedRCNN", "depth": 101, "predictor": None},
    "mask_rcnn_X_101_32x8d_FPN_1x": {"meta": "GeneralizedRCNN", "depth": 101, "predictor": None},
    "faster_rcnn_R_50_FPN_1x": {"meta": "GeneralizedRCNN", "depth": 50, "predictor": ""},
    "faster_rcnn_R_101_FPN_1x": {"meta": "GeneralizedRCNN", "depth": 101, "predictor": ""},
    "end_to_end_transfer": TRANSFER,
    "end_to_end_transfer_no_stop_grad": {**TRANSFER, "stop_grad": False},
    "stage_wise_class_agnostic": {**STAGE_WISE, "predictor": "agnostic"},
    "stage_wise_class_agnostic_mlp": {**STAGE_WISE, "predictor": "agnostic", "mlp": 1},
    "stage_wise_oracle": {**STAGE_WISE, "predictor": "class_specific"},
    "stage_wise_transfer": STAGE_WISE,
    "stage_wise_transfer_1_layer": {**STAGE_WISE, "layers": 1},
    "stage_wise_transfer_2_layer_relu": {**STAGE_WISE, "activation": "relu"},
    "stage_wise_transfer_3_layer": {**STAGE_WISE, "layers": 3},
    "stage_wise_transfer_3_layer_relu": {**STAGE_WISE, "layers": 3, "activation": "relu"},
    "stage_wise_transfer_box": {**STAGE_WISE, "embedding": "box"},
    "stage_wise_transfer_cls": {**STAGE_WISE, "embedding": "cls"},
    "stage_wise_transfer_glove": {**STAGE_WISE, "embedding": "file"},
    "stage_wise_transfer_random": {**STAGE_WISE, "embedding": "file"},
}


def test_every_experiment_is_there_and_none_is_unknown():
    assert {Path(name).stem for name in NAMES} == set(EXPECTED)


@pytest.mark.parametrize("name", NAMES)
def test_schedule_and_sizes_are_the_papers(name):
    cfg = load_config(str(CONFIGS / name))
    solver, heads, head = cfg.SOLVER, cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_MASK_HEAD
    schedule = (solver.IMS_PER_BATCH, solver.BASE_LR, solver.MAX_ITER, solver.STEPS)
    if "R_101" in name:
        assert schedule == (8, 0.01, 180000, (120000, 160000))
    else:
        assert schedule == (16, 0.02, 90000, (60000, 80000))
    assert (solver.GAMMA, solver.WEIGHT_DECAY) == (0.1, 0.0001)
    assert solver.REFERENCE_WORLD_SIZE == 8
    assert (cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN) == ((800,), 1333)
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) == (800, 1333)
    assert (heads.BATCH_SIZE_PER_IMAGE, heads.POSITIVE_FRACTION, heads.NUM_CLASSES) == (512, 0.25, 80)
    assert (head.NUM_CONV, head.CONV_DIM) == (4, 256)
    assert (head.POOLER_RESOLUTION, head.POOLER_SAMPLING_RATIO) == (14, 2)
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == (("coco_2017_train",), ("coco_2017_val",))
    # No run overwrites another's results.
    assert cfg.OUTPUT_DIR == f"output/{Path(name).stem}"


@pytest.mark.parametrize("name", NAMES)
def test_the_model_is_the_experiments_and_builds(name, tmp_path):
    cfg = load_config(str(CONFIGS / name))
    expected, head = EXPECTED[Path(name).stem], cfg.MODEL.ROI_MASK_HEAD
    assert cfg.MODEL.META_ARCHITECTURE == expected["meta"]
    assert cfg.MODEL.RESNETS.DEPTH == expected["depth"]
    if expected["predictor"]:
        assert head.NAME == "MaskXHead"
        settings = {
            "predictor": head.MASKX_PREDICTOR,
            "mlp": head.MLP_BRANCH.NUM_LAYERS,
            "embedding": head.CLASS_EMBEDDING,
            "layers": head.TRANSFER.NUM_LAYERS,
            "activation": head.TRANSFER.ACTIVATION,
            "stop_grad": head.STOP_GRAD,
        }
        assert settings == {key: expected[key] for key in settings}
        oracle = expected["predictor"] == "class_specific"
        assert cfg.DATASETS.CLASSES_WITH_MASKS == ("all" if oracle else "voc")
        assert cfg.TEST.MASKX_CLASS_SPLIT == ("voc" if oracle else "")
    else:
        # The oracle is Detectron2's own, untouched.
        assert (head.NAME, cfg.MODEL.ROI_HEADS.NAME) == ("MaskRCNNConvUpsampleHead", "StandardROIHeads")
        assert cfg.MODEL.MASK_ON is (expected["predictor"] is None)

    if head.CLASS_EMBEDDING == "file":
        head.CLASS_EMBEDDING_FILE = str(tmp_path / "table.npy")
        np.save(tmp_path / "table.npy", np.zeros((80, 300)))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 32
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 1 if cfg.MODEL.RESNETS.NUM_GROUPS == 32 else 8
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 8
    head.CONV_DIM = 8
    assert type(tiny.build(cfg)).__name__ == expected["meta"]


def test_detectron1s_settings_are_those_that_detectron2_compares_itself_with_and_its_optimizers():
    ours = load_config(str(CONFIGS / "maskx_R_50_FPN_1x_detectron1.yaml"))
    theirs = get_cfg()
    config = "Detectron1-Comparisons/mask_rcnn_R_50_FPN_noaug_1x.yaml"
    theirs.merge_from_file(model_zoo.get_config_file(config))
    for part in ("RPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD"):
        for key in ("SMOOTH_L1_BETA", "POOLER_TYPE", "POOLER_SAMPLING_RATIO"):
            assert ours.MODEL[part].get(key) == theirs.MODEL[part].get(key)
    solver = ours.SOLVER
    assert (solver.BIAS_LR_FACTOR, solver.WEIGHT_DECAY_BIAS) == (2.0, 0.0)
    assert (solver.WARMUP_ITERS, solver.WARMUP_FACTOR) == (500, pytest.approx(1 / 3))
    # And nothing else.
    default = load_config(str(CONFIGS / "maskx_R_50_FPN_1x.yaml"))
    ours.OUTPUT_DIR = default.OUTPUT_DIR
    for name in ("RPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD"):
        for key in ("SMOOTH_L1_BETA", "POOLER_TYPE"):
            if key in ours.MODEL[name]:
                ours.MODEL[name][key] = default.MODEL[name][key]
    for key in ("BIAS_LR_FACTOR", "WEIGHT_DECAY_BIAS", "WARMUP_ITERS", "WARMUP_FACTOR"):
        solver[key] = default.SOLVER[key]
    assert ours == default


def test_the_resnext_is_detectron2s():
    """Groups, width and pixel statistics of the weights that it starts from."""
    for method in ("mask_rcnn", "class_agnostic", "maskx"):
        cfg = load_config(str(CONFIGS / f"{method}_X_101_32x8d_FPN_1x.yaml"))
        resnets = cfg.MODEL.RESNETS
        assert (resnets.NUM_GROUPS, resnets.WIDTH_PER_GROUP, resnets.STRIDE_IN_1X1) == (32, 8, False)
        assert cfg.MODEL.PIXEL_STD == [57.375, 57.120, 58.395]
        assert cfg.MODEL.WEIGHTS.endswith("X-101-32x8d.pkl")


@pytest.mark.parametrize(
    ("num_gpus", "batch", "rate", "length"), [(4, 8, 0.01, 180000), (1, 2, 0.0025, 720000)]
)
def test_on_fewer_gpus_the_schedule_is_scaled_linearly(num_gpus, batch, rate, length):
    cfg = load_config(str(CONFIGS / "maskx_R_50_FPN_1x.yaml"))
    solver = DefaultTrainer.auto_scale_workers(cfg, num_gpus).SOLVER
    assert (solver.IMS_PER_BATCH, solver.BASE_LR, solver.MAX_ITER) == (batch, rate, length)
    assert solver.STEPS == (length * 2 // 3, length * 8 // 9)
    assert solver.WARMUP_ITERS == 1000 * 8 // num_gpus


def test_the_table_of_experiments_names_every_config_and_no_other():
    text = (CONFIGS.parent / "docs" / "experiments.md").read_text()
    linked = set(re.findall(r"\]\(\.\./configs/((?:ablations/)?\w+\.yaml)\)", text))
    assert all((CONFIGS / name).is_file() for name in linked)
    named = linked | {f"{method}_X_101_32x8d_FPN_1x.yaml" for method in ("class_agnostic", "maskx")}
    assert named | {"faster_rcnn_R_101_FPN_1x.yaml", "faster_rcnn_R_50_FPN_1x.yaml"} == set(NAMES)
