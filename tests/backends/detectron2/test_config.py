import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model

from maskx_d2 import add_maskx_config, build_train_loader
from maskx_d2.backends.detectron2 import PartiallySupervisedMapper
from maskx_d2.backends.detectron2.config import load_config
from maskx_d2.backends.detectron2.config_keys import KEYS, keys_as_markdown
from maskx_d2.runtime.configs import config_file

from . import tiny

MAIN_CONFIG = str(config_file("maskx_R_50_FPN_1x.yaml"))


def test_import_changes_no_config_and_adding_the_keys_again_changes_nothing():
    assert "CLASSES_WITH_MASKS" not in get_cfg().DATASETS
    cfg = get_cfg()
    add_maskx_config(cfg)
    assert cfg.DATASETS.CLASSES_WITH_MASKS == "all"
    cfg.MODEL.ROI_MASK_HEAD.TRANSFER.NUM_LAYERS = 3
    add_maskx_config(cfg)
    assert cfg.MODEL.ROI_MASK_HEAD.TRANSFER.NUM_LAYERS == 3


def test_the_config_of_another_project_is_dumped_and_read_as_if_this_one_was_not_there():
    code = """
import sys
from detectron2.config import get_cfg
before = get_cfg().dump()
import maskx_d2
assert "maskx_d2.backends.detectron2.mask_head" in sys.modules
assert get_cfg().dump() == before
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["PartiallySupervisedROIHeads", "PartiallySupervisedRes5ROIHeads"])
@pytest.mark.parametrize("mask_head", ["MaskXHead", "MaskRCNNConvUpsampleHead"])
def test_components_say_how_to_add_the_keys_that_they_miss(name, mask_head):
    cfg = get_cfg()
    cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.ROI_MASK_HEAD.NAME = name, mask_head
    cfg.MODEL.MASK_ON, cfg.MODEL.DEVICE, cfg.DATASETS.TRAIN = True, "cpu", ("coco_2017_val",)
    message = r"call maskx_d2.add_maskx_config\(cfg\) after get_cfg\(\)"
    for build in (
        lambda: build_model(cfg),
        lambda: build_train_loader(cfg),
        lambda: PartiallySupervisedMapper(cfg),
    ):
        with pytest.raises(ValueError, match=message):
            build()


def test_the_keys_of_other_projects_stay_theirs():
    """Detic has SOLVER.OPTIMIZER and DATALOADER.DATASET_RATIO, of other values; both orders."""
    for add_theirs_first in (True, False):
        cfg = get_cfg()
        for is_theirs in (add_theirs_first, not add_theirs_first):
            if is_theirs:
                cfg.SOLVER.OPTIMIZER, cfg.DATALOADER.DATASET_RATIO = "ADAMW", [4, 1]
            else:
                add_maskx_config(cfg)
        cfg.merge_from_list(["SOLVER.OPTIMIZER", "SGD", "DATALOADER.DATASET_RATIO", "[1, 2]"])
        assert (cfg.SOLVER.OPTIMIZER, cfg.DATALOADER.DATASET_RATIO) == ("SGD", [1, 2])
        assert (cfg.SOLVER.MASKX_OPTIMIZER, cfg.DATALOADER.MASKX_DATASET_RATIO) == ("SGD", [])


def test_the_table_in_the_docs_has_every_key_with_its_default():
    added, plain = get_cfg(), get_cfg()
    add_maskx_config(added)
    own = leaves(added).keys() - leaves(plain).keys()
    assert own == {key.name for key in KEYS}
    assert all(leaves(added)[key.name] == key.default for key in KEYS)
    page = (Path(__file__).parents[3] / "docs" / "config-keys.md").read_text()
    assert keys_as_markdown() in page, "write it: python -m maskx_d2.backends.detectron2.config_keys"


def leaves(node, prefix=""):
    found = {}
    for name, value in node.items():
        found |= leaves(value, f"{prefix}{name}.") if isinstance(value, CfgNode) else {prefix + name: value}
    return found


def test_keys_can_be_added_to_a_config_that_has_none():
    cfg = get_cfg()
    add_maskx_config(cfg)
    nodes = {"DATASETS": {}, "DATALOADER": {}, "TEST": {}, "SOLVER": {}, "MODEL": {"ROI_MASK_HEAD": {}}}
    bare = CfgNode(nodes)
    add_maskx_config(bare)
    assert bare.MODEL.ROI_MASK_HEAD.MLP_BRANCH == cfg.MODEL.ROI_MASK_HEAD.MLP_BRANCH


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("SOLVER.MASKX_OPTIMIZER", "Adam", "'SGD', 'AdamW'"),
        ("MODEL.ROI_MASK_HEAD.MASKX_PREDICTOR", "maskx", "'transfer', 'agnostic', 'class_specific'"),
        ("MODEL.ROI_MASK_HEAD.CLASS_EMBEDDING", "glove", "'cls', 'box', 'cls[+]box', 'file'"),
        ("MODEL.ROI_MASK_HEAD.TRANSFER.NUM_LAYERS", 4, "1, 2, 3"),
        ("MODEL.ROI_MASK_HEAD.TRANSFER.ACTIVATION", "gelu", "'leaky_relu', 'relu'"),
        ("MODEL.ROI_MASK_HEAD.TRANSFER.HIDDEN_DIM", 0, "1 or more"),
        ("MODEL.ROI_MASK_HEAD.MLP_BRANCH.NUM_LAYERS", 4, "0, 1, 2, 3"),
        ("MODEL.ROI_MASK_HEAD.MLP_BRANCH.HIDDEN_DIM", 0, "1 or more"),
        ("MODEL.ROI_MASK_HEAD.MLP_BRANCH.REDUCED_CHANNELS", -1, "0 or more"),
    ],
)
def test_a_value_that_is_not_allowed_is_an_error_with_key_value_and_what_is(key, value, allowed):
    with pytest.raises(ValueError, match=rf"^{key} is {value!r}, expected .*{allowed}"):
        load_config(MAIN_CONFIG, [key, value])


def test_building_a_model_checks_the_keys_too():
    cfg = tiny.model_config()
    cfg.defrost()
    cfg.MODEL.ROI_MASK_HEAD.MASKX_PREDICTOR = "maskx"
    with pytest.raises(ValueError, match=r"ROI_MASK_HEAD.MASKX_PREDICTOR is 'maskx', expected one of"):
        tiny.build(cfg)


@pytest.mark.parametrize("embedding", ["box", "cls+box"])
def test_box_embeddings_with_class_agnostic_regression_name_both_keys(embedding):
    overrides = ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True]
    with pytest.raises(ValueError, match=r"ROI_MASK_HEAD.CLASS_EMBEDDING.*CLS_AGNOSTIC_BBOX_REG True"):
        load_config(MAIN_CONFIG, [*overrides, "MODEL.ROI_MASK_HEAD.CLASS_EMBEDDING", embedding])
    load_config(MAIN_CONFIG, [*overrides, "MODEL.ROI_MASK_HEAD.CLASS_EMBEDDING", "cls"])
    load_config(MAIN_CONFIG, [*overrides, "MODEL.ROI_MASK_HEAD.MASKX_PREDICTOR", "agnostic"])


def test_class_embedding_file_must_be_given():
    with pytest.raises(ValueError, match=r"CLASS_EMBEDDING_FILE is empty: .* shape \(80, D\)"):
        load_config(MAIN_CONFIG, ["MODEL.ROI_MASK_HEAD.CLASS_EMBEDDING", "file"])


def test_a_batch_that_cannot_be_scaled_is_an_error():
    with pytest.raises(
        ValueError, match=r"SOLVER.IMS_PER_BATCH is 12, expected a multiple of .* 8: set that"
    ):
        load_config(MAIN_CONFIG, ["SOLVER.IMS_PER_BATCH", 12])
    load_config(MAIN_CONFIG, ["SOLVER.IMS_PER_BATCH", 12, "SOLVER.REFERENCE_WORLD_SIZE", 0])


def test_gathered_regression_needs_the_roi_heads_that_have_it():
    overrides = ["MODEL.ROI_BOX_HEAD.GATHERED_REGRESSION", True]
    load_config(MAIN_CONFIG, overrides)
    with pytest.raises(ValueError, match=r"GATHERED_REGRESSION is True, but .* is 'StandardROIHeads'"):
        load_config(MAIN_CONFIG, [*overrides, "MODEL.ROI_HEADS.NAME", "StandardROIHeads"])
    with pytest.raises(ValueError, match=r"but .* is 'CascadeROIHeads', expected 'PartiallySupervised"):
        load_config(MAIN_CONFIG, [*overrides, "MODEL.ROI_HEADS.NAME", "CascadeROIHeads"])


def test_a_missing_config_and_an_unknown_key_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config 'nowhere.yaml' is not a file"):
        load_config("nowhere.yaml")
    with pytest.raises(ValueError, match=r"Non-existent key: MODEL.MASKY"):
        load_config(MAIN_CONFIG, ["MODEL.MASKY", 1])
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("VERSION: 2\nMODEL:\n  MASKY: 1\n")
    with pytest.raises(ValueError, match=r"wrong.yaml.*Non-existent config key: MODEL.MASKY"):
        load_config(str(wrong))
    wrong.write_text("VERSION: 2\nMODEL: [\n")
    with pytest.raises(ValueError, match=r"^config .*wrong.yaml: while parsing .*$"):
        load_config(str(wrong))


def test_a_model_without_a_dataset_to_train_on_builds(tmp_path):
    (tmp_path / "names.txt").write_text("person\n")
    cfg = tiny.model_config(
        *("DATASETS.TRAIN", (), "DATASETS.CLASSES_WITH_MASKS", str(tmp_path / "names.txt")),
    )
    model = tiny.build(cfg).eval()
    with torch.no_grad():
        (found,) = model([{"image": torch.zeros(3, 64, 64)}])
    assert found["instances"].has("pred_masks")
