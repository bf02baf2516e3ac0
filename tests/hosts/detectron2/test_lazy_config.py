from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

from maskx_d2.hosts.detectron2 import PartiallySupervisedROIHeads
from maskx_d2.hosts.detectron2.command_line import load_config
from maskx_d2.hosts.detectron2.data_loader import load_without_masks

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


@pytest.fixture(scope="module")
def config():
    return LazyConfig.load(str(CONFIGS / "lazy" / "maskx_R_50_FPN_1x.py"))


def test_both_kinds_of_config_build_the_same_model(config):
    cfg = load_config(str(CONFIGS / "maskx_R_50_FPN_1x.yaml"))
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        from_yaml = build_model(cfg)
        from_lazy = instantiate(config.model)
    shapes = [{name: value.shape for name, value in m.state_dict().items()} for m in (from_yaml, from_lazy)]
    assert shapes[0] == shapes[1] and len(shapes[0]) > 300
    trained = [{n for n, p in m.named_parameters() if p.requires_grad} for m in (from_yaml, from_lazy)]
    assert trained[0] == trained[1]
    for part in ("box_pooler", "mask_pooler"):
        assert repr(getattr(from_yaml.roi_heads, part)) == repr(getattr(from_lazy.roi_heads, part))


def test_schedule_split_and_sizes_are_those_of_the_yaml(config):
    cfg = load_config(str(CONFIGS / "maskx_R_50_FPN_1x.yaml"))
    assert config.optimizer.lr == cfg.SOLVER.BASE_LR
    assert config.optimizer.weight_decay == cfg.SOLVER.WEIGHT_DECAY
    assert config.train.max_iter == cfg.SOLVER.MAX_ITER
    assert tuple(config.lr_multiplier.scheduler.milestones[:2]) == cfg.SOLVER.STEPS
    assert config.train.init_checkpoint == cfg.MODEL.WEIGHTS
    assert config.dataloader.train.total_batch_size == cfg.SOLVER.IMS_PER_BATCH
    resize = config.dataloader.train.mapper.augmentations[0]
    assert (tuple(resize.short_edge_length), resize.max_size) == (
        cfg.INPUT.MIN_SIZE_TRAIN,
        cfg.INPUT.MAX_SIZE_TRAIN,
    )
    heads = instantiate(config.model.roi_heads.get_class_has_mask)
    assert heads.split == cfg.DATASETS.CLASSES_WITH_MASKS
    assert sum(heads()) == 20
    assert len(instantiate(config.dataloader.evaluator.classes_with_masks)) == 20
    assert config.model.roi_heads._target_ is PartiallySupervisedROIHeads


def test_the_training_set_is_loaded_without_the_masks_that_the_split_takes_away(tmp_path):
    annotations = [
        {"category_id": i % 2, "segmentation": [[0, 0, 1, 0, 1, 1]], "iscrowd": 0} for i in range(4)
    ]
    DatasetCatalog.register("two_classes", lambda: [{"annotations": annotations}, {"annotations": []}])
    MetadataCatalog.get("two_classes").thing_classes = ["cat", "dog"]
    try:
        (tmp_path / "dogs.txt").write_text("dog\n")
        (image,) = load_without_masks("two_classes", str(tmp_path / "dogs.txt"))
        assert ["segmentation" in a for a in image["annotations"]] == [False, True, False, True]
    finally:
        DatasetCatalog.remove("two_classes")
        MetadataCatalog.remove("two_classes")
