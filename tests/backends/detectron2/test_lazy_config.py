from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.model_zoo import get_config
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage

from maskx_d2.backends.detectron2 import LabelledClasses, PartiallySupervisedROIHeads
from maskx_d2.backends.detectron2.command_line import load_config
from maskx_d2.backends.detectron2.data_loader import load_without_masks
from maskx_d2.backends.detectron2.lazy_config import partially_supervise

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


def smaller(model):
    """With a vision transformer of two narrow layers."""
    net = model.backbone.net
    net.img_size = net.embed_dim = model.backbone.square_pad = 64
    net.depth, net.num_heads, net.window_size, net.window_block_indexes = 2, 2, 2, [0]
    heads = model.roi_heads
    heads.mask_head.predictor.mlp_reduced_channels = 4
    for head in heads.box_heads if "box_heads" in heads else [heads.box_head]:
        head.conv_dims = [256]
    return model


def one_instance_with_a_mask_and_one_without(num_classes, *, labelled=None):
    instances = Instances(
        (64, 64),
        gt_boxes=Boxes(torch.tensor([[5.0, 5.0, 30.0, 40.0], [30.0, 10.0, 60.0, 60.0]])),
        gt_classes=torch.tensor([0, 1]),
        gt_masks=PolygonMasks([[[5.0, 5.0, 30.0, 5.0, 30.0, 40.0]], []]),
        gt_has_mask=torch.tensor([True, False]),
    )
    if labelled is not None:
        is_labelled = torch.zeros(num_classes, dtype=torch.bool)
        is_labelled[labelled] = True
        instances.gt_labelled_classes = LabelledClasses(is_labelled, 2)
    return {"image": torch.rand(3, 64, 64) * 255, "instances": instances, "height": 64, "width": 64}


@pytest.mark.parametrize("name", ["maskx_vitdet_b_100ep", "maskx_cascade_vitdet_b_100ep"])
def test_a_vision_transformer_trains_and_infers(name):
    config = LazyConfig.load(str(CONFIGS / "lazy" / f"{name}.py"))
    torch.manual_seed(0)
    config.model.roi_heads.get_class_has_mask = None  # a split of the coco datasets
    model = instantiate(smaller(config.model))
    optimizer = config.optimizer
    optimizer.params.model = model
    optimizer = instantiate(optimizer)
    with EventStorage():
        losses = model.train()([one_instance_with_a_mask_and_one_without(80, labelled=[0, 1, 5])])
        sum(losses.values()).backward()
    assert "loss_mask" in losses and all(loss.isfinite() for loss in losses.values())
    for parameter in model.roi_heads.mask_head.predictor.parameters():
        assert parameter.grad.isfinite().all()
    for predictor in model.roi_heads.box_predictors:
        moved = predictor.cls_score.weight.grad.abs().sum(1) > 0
        assert moved[[0, 1, 5, 80]].all() and moved.sum() == 4
    optimizer.step()
    for predictor in model.roi_heads.box_predictors:
        predictor.test_score_thresh = -1.0
    with torch.no_grad():
        (found,) = model.eval()([one_instance_with_a_mask_and_one_without(80)])
    assert len(found["instances"]) > 0 and found["instances"].pred_masks.shape[1:] == (64, 64)


def test_a_recipe_is_that_of_vitdet():
    config = LazyConfig.load(str(CONFIGS / "lazy" / "maskx_vitdet_b_100ep.py"))
    stock = get_config("common/models/mask_rcnn_vitdet.py").model
    for part in ("backbone", "proposal_generator", "pixel_mean", "input_format"):
        assert str(config.model[part]) == str(stock[part])
    assert config.model.roi_heads.box_head == stock.roi_heads.box_head
    assert config.model.roi_heads.mask_head.conv_norm == "LN"
    assert config.train.max_iter * config.dataloader.train.total_batch_size == 100 * 118000
    assert config.lr_multiplier.warmup_length * config.train.max_iter == pytest.approx(250)
    cascade = LazyConfig.load(str(CONFIGS / "lazy" / "maskx_cascade_vitdet_b_100ep.py"))
    assert all(head == stock.roi_heads.box_head for head in cascade.model.roi_heads.box_heads)
    assert cascade.model.roi_heads.mask_head.predictor.class_embedding == "cls"


@pytest.mark.parametrize("name", ["mask_rcnn_c4", "cascade_rcnn"])
def test_other_models_of_detectron2_are_partially_supervised_by_one_call(name):
    model = get_config(f"common/models/{name}.py").model
    dataloader = get_config("common/data/coco.py").dataloader
    partially_supervise(model, dataloader, split="voc", mlp_reduced_channels=4)
    assert instantiate(model.roi_heads.get_class_has_mask).split == "voc"
    with torch.device("meta"):
        heads = instantiate(model.roi_heads)
    predictor = heads.mask_head.predictor
    expected = 1024 if name == "cascade_rcnn" else 5 * 2048
    assert predictor.transfer[0].in_features == expected
    assert len(predictor.class_embeddings.tensors()[0]) == 80


def test_roi_heads_without_a_counterpart_are_named():
    model = get_config("common/models/mask_rcnn_fpn.py").model
    model.roi_heads._target_ = PartiallySupervisedROIHeads
    with pytest.raises(ValueError, match=r"PartiallySupervisedROIHeads.*, expected one of StandardROI"):
        partially_supervise(model, get_config("common/data/coco.py").dataloader, split="voc")
