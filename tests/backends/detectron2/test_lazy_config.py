import json
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import inference_on_dataset
from detectron2.model_zoo import get_config
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from PIL import Image

import maskx_d2
from maskx_d2.backends.detectron2 import LabelledClasses, PartiallySupervisedROIHeads
from maskx_d2.backends.detectron2.command_line import load_config
from maskx_d2.backends.detectron2.data_loader import load_without_masks
from maskx_d2.backends.detectron2.lazy_config import load_lazy_config, partially_supervise
from maskx_d2.commands import main as cli

from . import tiny

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
        (image,) = load_without_masks("two_classes", split=str(tmp_path / "dogs.txt"))
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


# ---- What partially_supervise keeps and offers ----


def stock():
    return get_config("common/models/mask_rcnn_fpn.py").model, get_config("common/data/coco.py").dataloader


def test_options_of_the_dataset_stay_and_lists_of_datasets_are_loaded_together(tmp_path):
    names = ("lazy_a", "lazy_b")
    annotation = {"category_id": 0, "segmentation": [[0, 0, 1, 0, 1, 1]], "iscrowd": 0}
    for name in names:
        DatasetCatalog.register(
            name,
            lambda name=name: [
                {"file_name": name, "annotations": [dict(annotation)]},
                {"file_name": f"empty {name}", "annotations": []},
            ],
        )
        MetadataCatalog.get(name).thing_classes = ["cat", "dog"]
    (tmp_path / "dogs.txt").write_text("dog\n")
    try:
        model, dataloader = stock()
        dataloader.train.dataset.names = list(names)
        dataloader.train.dataset.filter_empty = False
        partially_supervise(model, dataloader, split=str(tmp_path / "dogs.txt"))
        dataset = instantiate(dataloader.train.dataset)
        assert [image["file_name"] for image in dataset] == [
            "lazy_a",
            "empty lazy_a",
            "lazy_b",
            "empty lazy_b",
        ]
        assert not any("segmentation" in a for image in dataset for a in image["annotations"])
        assert instantiate(model.roi_heads.get_class_has_mask)() == [False, True]
        dataloader.train.dataset.filter_empty = True
        assert len(instantiate(dataloader.train.dataset)) == 2
        dataloader.train.dataset.min_keypoints = 1
        for _, options in [({}, {"keypoints": [1, 1, 2]})]:
            annotation.update(options)
        assert len(instantiate(dataloader.train.dataset)) == 2
        MetadataCatalog.remove("lazy_b")
        MetadataCatalog.get("lazy_b").thing_classes = ["cat", "horse"]
        with pytest.raises(ValueError, match="'lazy_a' and 'lazy_b' have other classes"):
            instantiate(dataloader.train.dataset)
    finally:
        for name in names:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def test_several_test_datasets_are_an_error():
    model, dataloader = stock()
    dataloader.test.dataset.names = ["coco_2017_val", "coco_2017_val_100"]
    with pytest.raises(ValueError, match="expected one: Detectron2's evaluator is for one dataset"):
        partially_supervise(model, dataloader, split="voc")


def test_box_supervision_and_rois_are_those_of_the_yaml_keys():
    model, dataloader = stock()
    weights = {"projection": 0.3, "pairwise": 0.2, "start": 2, "warmup": 5}
    partially_supervise(
        model, dataloader, split="voc", box_supervision=weights, train_rois="both", rois_per_image=4
    )
    keys = [f"MODEL.ROI_MASK_HEAD.BOX_SUPERVISION.{name.upper()}" for name in weights]
    pairs = [word for pair in zip(keys, weights.values(), strict=True) for word in pair]
    more = ["MODEL.ROI_MASK_HEAD.TRAIN_ROIS", "both", "MODEL.ROI_MASK_HEAD.ROIS_PER_IMAGE", 4]
    cfg = load_config(str(CONFIGS / "maskx_R_50_FPN_1x.yaml"), [*pairs, *more, "MODEL.DEVICE", "meta"])
    with torch.device("meta"):
        heads, expected = instantiate(model).roi_heads, build_model(cfg).roi_heads
    for name in ("weights", "start", "warmup"):
        found = getattr(heads.mask_head.box_supervision, name)
        assert found == getattr(expected.mask_head.box_supervision, name)
    assert (heads.train_rois, heads.rois_per_image) == (expected.train_rois, expected.rois_per_image)
    image = torch.zeros(3, 2, 2)
    torch.testing.assert_close(heads._to_rgb(image), expected._to_rgb(image))


def test_an_hourglass_is_that_of_the_yaml_keys():
    model, dataloader = stock()
    partially_supervise(model, dataloader, split="voc", trunk="hourglass_20", mlp_layers=0)
    prefix = "MODEL.ROI_MASK_HEAD"
    keys = {"TRUNK": "hourglass_20", "CONV_DIM": 64, "NORM": "GN", "POOLER_RESOLUTION": 32}
    pairs = [word for name, value in keys.items() for word in (f"{prefix}.{name}", value)]
    more = [f"{prefix}.MLP_BRANCH.NUM_LAYERS", 0, "MODEL.DEVICE", "meta"]
    cfg = load_config(str(CONFIGS / "maskx_R_50_FPN_1x.yaml"), [*pairs, *more])
    with torch.device("meta"):
        heads, expected = instantiate(model).roi_heads, build_model(cfg).roi_heads
    shapes = [{n: v.shape for n, v in h.mask_head.state_dict().items()} for h in (heads, expected)]
    assert shapes[0] == shapes[1] and any("hourglass" in name for name in shapes[0])
    assert heads.mask_pooler.output_size == expected.mask_pooler.output_size
    model = get_config("common/models/mask_rcnn_c4.py").model
    with pytest.raises(ValueError, match="expected 'convs' if the box and mask branches share"):
        partially_supervise(model, stock()[1], split="voc", trunk="hourglass_20")


# ---- Trained models ----

LAZY = """
from detectron2.config import LazyCall as L
from detectron2.model_zoo import get_config
import detectron2.data.transforms as T
from maskx_d2.backends.detectron2.lazy_config import partially_supervise

model = get_config("common/models/mask_rcnn_fpn.py").model
model.backbone.bottom_up.stem.norm = model.backbone.bottom_up.stages.norm = "BN"
model.roi_heads.num_classes = 32
model.roi_heads.box_predictor.test_score_thresh = 0.0
model.roi_heads.mask_head.conv_dims = [8, 8]
dataloader = get_config("common/data/coco.py").dataloader
dataloader.train.dataset.names, dataloader.test.dataset.names = "shapes_train", "shapes_test"
dataloader.test.mapper.augmentations = [L(T.ResizeShortestEdge)(short_edge_length=64, max_size=96)]
partially_supervise(model, dataloader, split={split!r}, output_dir={folder!r}, mlp_reduced_channels=4)
"""


@pytest.fixture
def lazy_run(shapes_dataset, tmp_path):
    """A LazyConfig of the demo's 32 classes, and weights for it."""
    tiny.data_config(shapes_dataset, tmp_path)  # registers the datasets
    (tmp_path / "own.py").write_text(
        LAZY.format(split=str(shapes_dataset.split_file), folder=str(tmp_path))
    )
    config = load_lazy_config(tmp_path / "own.py")
    torch.manual_seed(0)
    torch.save({"model": instantiate(config.model).state_dict()}, tmp_path / "weights.pth")
    return tmp_path / "own.py", tmp_path / "weights.pth"


def test_a_model_of_a_python_config_is_loaded_and_detects_as_detectron2(lazy_run, shapes_dataset):
    config_file, weights = lazy_run
    detector = maskx_d2.load_detector(weights, config_file)
    assert len(detector.style.names) == 32 and len(detector.style.with_masks) == 24
    config = LazyConfig.load(str(config_file))
    model = instantiate(config.model).eval()
    DetectionCheckpointer(model).load(str(weights))
    loader = instantiate(config.dataloader.test)
    record = next(iter(loader))
    with torch.no_grad():
        (expected,) = model(record)
    (found,) = detector.coco_results([Image.open(record[0]["file_name"]).convert("RGB")], [1])
    instances = expected["instances"]
    assert len(found) == len(instances) > 0
    assert [r["score"] for r in found] == pytest.approx(instances.scores.tolist(), abs=1e-6)
    boxes = instances.pred_boxes.tensor.clone()
    boxes[:, 2:] -= boxes[:, :2]
    for result, box in zip(found, boxes.tolist(), strict=True):
        assert result["bbox"] == pytest.approx(box, abs=1e-3)


def test_predict_takes_a_python_config_and_overrides_of_it(lazy_run, shapes_dataset, tmp_path):
    config_file, weights = lazy_run
    image = next(iter(sorted(shapes_dataset.test_images.iterdir())))
    arguments = [
        "--config-file",
        config_file,
        "--weights",
        weights,
        "--output",
        tmp_path / "out",
        "--min-score",
    ]
    opts = ["--opts", "model.roi_heads.box_predictor.test_topk_per_image", "3"]
    results = tmp_path / "out" / "coco_instances_results.json"
    assert cli.main(["predict", *map(str, [*arguments, 0, image])]) in (None, 0)
    assert len(json.loads(results.read_text())) > 3
    assert cli.main(["predict", *map(str, [*arguments, 0, image, *opts])]) in (None, 0)
    assert 0 < len(json.loads(results.read_text())) <= 3
    with pytest.raises(SystemExit) as stopped:
        cli.main(["predict", *map(str, ["--config-file", "absent.py", *arguments[2:], 0, image])])
    assert stopped.value.code == 2


def test_compare_reads_the_run_of_a_lazy_config(lazy_run, tmp_path, capsys):
    config = LazyConfig.load(str(lazy_run[0]))
    evaluator = instantiate(config.dataloader.evaluator)
    loader = instantiate(config.dataloader.test)
    model = instantiate(config.model).eval()
    inference_on_dataset(model, loader, evaluator)
    assert cli.main(["compare", str(tmp_path), "--output", str(tmp_path / "report")]) in (None, 0)
    assert "B: boxes only" in capsys.readouterr().out
