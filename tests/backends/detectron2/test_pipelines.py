"""Detectron2's own mask configs, with this project's ROI heads and mask head in place of theirs."""

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from waits import Waits

from maskx_d2.backends.detectron2 import LabelledClasses
from maskx_d2.backends.detectron2.config import add_maskx_config, in_place_of

CONFIGS = {
    "C4": "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml",
    "DC5": "COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_1x.yaml",
    "FPN": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
    "GIoU": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x_giou.yaml",
    "panoptic FPN": "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml",
    "Cityscapes": "Cityscapes/mask_rcnn_R_50_FPN.yaml",
    "LVIS v1": "LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
    "cascade": "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml",
    "class-agnostic regression": "Misc/mask_rcnn_R_50_FPN_1x_cls_agnostic.yaml",
    "GN": "Misc/mask_rcnn_R_50_FPN_3x_gn.yaml",
    "from scratch": "Misc/scratch_mask_rcnn_R_50_FPN_3x_gn.yaml",
    "BN": "Misc/mask_rcnn_R_50_FPN_3x_syncbn.yaml",
}
HEIGHT, WIDTH = 128, 160


def stock_config(name):
    cfg = get_cfg()
    cfg.merge_from_file(model_zoo.get_config_file(CONFIGS[name]))
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    for part in (cfg.MODEL.RESNETS, cfg.MODEL.FPN, cfg.MODEL.ROI_MASK_HEAD, cfg.MODEL.ROI_BOX_HEAD):
        if part.NORM == "SyncBN":  # which has no CPU implementation
            part.NORM = "BN"
    # As narrow as group normalisation lets it be, and few RoIs.
    resnet = cfg.MODEL.RESNETS
    resnet.STEM_OUT_CHANNELS = resnet.RES2_OUT_CHANNELS = resnet.WIDTH_PER_GROUP = 32
    cfg.MODEL.FPN.OUT_CHANNELS = cfg.MODEL.ROI_BOX_HEAD.CONV_DIM = cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 32
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 64
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 32
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 30
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = -1.0  # untrained, a model may be sure that there is nothing
    cfg.TEST.DETECTIONS_PER_IMAGE = 7
    return cfg


def partially_supervised(cfg):
    """Two lines, and a third where regression is class-agnostic."""
    cfg = cfg.clone()
    add_maskx_config(cfg)
    cfg.MODEL.ROI_HEADS.NAME = in_place_of(cfg.MODEL.ROI_HEADS.NAME)
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskXHead"
    if cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG:
        cfg.MODEL.ROI_MASK_HEAD.CLASS_EMBEDDING = "cls"
    return cfg


def image_of_two():
    """One instance with a mask, one with a box only."""
    triangle = [20.0, 20.0, 80.0, 20.0, 80.0, 90.0]
    instances = Instances(
        (HEIGHT, WIDTH),
        gt_boxes=Boxes(torch.tensor([[20.0, 20.0, 80.0, 90.0], [90.0, 30.0, 150.0, 100.0]])),
        gt_classes=torch.tensor([1, 3]),
        gt_masks=PolygonMasks([[triangle], []]),
        gt_has_mask=torch.tensor([True, False]),
    )
    # Of little contrast: an untrained network without normalisation makes large numbers of it.
    image = 115 + torch.rand(3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    sem_seg = torch.zeros(HEIGHT, WIDTH, dtype=torch.long)
    return {"image": image, "instances": instances, "sem_seg": sem_seg, "height": HEIGHT, "width": WIDTH}


def train_step(model):
    """Losses, after their gradients."""
    with EventStorage() as storage:
        losses = model.train()([image_of_two()])
        sum(losses.values()).backward()
    assert storage.latest()["roi_head/num_mask_samples"][0] > 0
    return losses


@pytest.mark.parametrize("name", CONFIGS)
def test_every_mask_config_of_detectron2_builds_loads_trains_and_infers(name):
    cfg = stock_config(name)
    stock = build_model(cfg).state_dict()
    model = build_model(partially_supervised(cfg))
    result = model.load_state_dict(stock, strict=False)
    predictor = "roi_heads.mask_head.predictor."
    assert result.missing_keys and all(key.startswith(predictor) for key in result.missing_keys)
    assert set(result.unexpected_keys) == {f"{predictor}weight", f"{predictor}bias"}

    losses = train_step(model)
    assert "loss_mask" in losses and all(loss.isfinite() for loss in losses.values())
    gradients = [p.grad for p in model.roi_heads.mask_head.predictor.parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    assert any(g.abs().sum() > 0 for g in gradients)

    with torch.no_grad():
        (output,) = model.eval()([image_of_two()])
    found = output["instances"]
    assert len(found) > 0 and found.pred_masks.shape == (len(found), HEIGHT, WIDTH)
    assert found.pred_masks.dtype == torch.bool


@pytest.mark.parametrize("num_images", [1, 4])
def test_a_step_of_a_c4_model_waits_for_a_gpu_no_more_often_than_one_of_stock(num_images):
    def waits(cfg):
        model = build_model(cfg).train()
        with EventStorage(), Waits() as counter:
            sum(model([image_of_two() for _ in range(num_images)]).values()).backward()
        return counter

    stock = waits(stock_config("C4"))
    assert stock.counts["nonzero"] > num_images
    ours = waits(partially_supervised(stock_config("C4")))
    assert ours.total <= stock.total, (ours.counts, stock.counts)


OTHER_ROI_HEADS = pytest.mark.parametrize("name", ["C4", "cascade"])


def watched(model):
    """The RoIs, with their features, that the mask head gets from now on."""
    seen = []
    model.roi_heads.mask_head.register_forward_pre_hook(lambda head, inputs: seen.append(inputs))
    return seen


@OTHER_ROI_HEADS
def test_where_all_have_masks_losses_are_those_of_detectron2(name):
    cfg = stock_config(name)
    add_maskx_config(cfg)
    losses = []
    for roi_heads in (cfg.MODEL.ROI_HEADS.NAME, in_place_of(cfg.MODEL.ROI_HEADS.NAME)):
        cfg.MODEL.ROI_HEADS.NAME = roi_heads
        torch.manual_seed(0)
        model = build_model(cfg)
        image = image_of_two()
        image["instances"].remove("gt_has_mask")  # which not every mapper gives
        image["instances"].gt_masks = PolygonMasks([[[20.0, 20.0, 80.0, 20.0, 80.0, 90.0]]] * 2)
        torch.manual_seed(1)
        with EventStorage():
            losses.append({k: v.item() for k, v in model.train()([image]).items()})
    assert losses[0] == losses[1] and losses[0]["loss_mask"] > 0


@OTHER_ROI_HEADS
def test_the_mask_head_gets_rois_of_instances_with_masks_and_their_own_features(name):
    cfg = partially_supervised(stock_config(name))
    model = build_model(cfg)
    seen = watched(model)
    sampled = []
    label = model.roi_heads.label_and_sample_proposals
    model.roi_heads.label_and_sample_proposals = lambda *a: sampled.append(label(*a)) or sampled[-1]
    with EventStorage():
        model.train()([image_of_two(), image_of_two()])
    ((features, rois),) = seen
    for given, of_image in zip(rois, sampled[0], strict=True):
        assert len(given) == (of_image.gt_classes == 1).sum() > 0
        assert (of_image.gt_classes == 3).any() and set(given.gt_classes.tolist()) == {1}
    assert len(features) == sum(map(len, rois))
    if name == "C4":
        image = model.preprocess_image([image_of_two(), image_of_two()])
        with torch.no_grad():
            maps = [model.backbone(image.tensor)[f] for f in cfg.MODEL.ROI_HEADS.IN_FEATURES]
            expected = model.roi_heads._shared_roi_transform(maps, [i.proposal_boxes for i in rois])
        assert (features - expected).abs().max() < 1e-5 * expected.max()


@OTHER_ROI_HEADS
def test_no_more_rois_than_wanted_are_for_the_mask_head(name):
    cfg = partially_supervised(stock_config(name))
    cfg.MODEL.ROI_MASK_HEAD.ROIS_PER_IMAGE = 1
    model = build_model(cfg)
    seen = watched(model)
    train_step(model)
    ((features, rois),) = seen
    assert len(features) == len(rois[0]) == 1 and rois[0].gt_classes.tolist() == [1]


@OTHER_ROI_HEADS
def test_polygons_of_a_class_without_masks_never_matter(name):
    cfg = partially_supervised(stock_config(name))
    torch.manual_seed(0)
    model = build_model(cfg)
    losses = []
    for polygon in ([90.0, 30.0, 150.0, 30.0, 150.0, 100.0], [90.0, 90.0, 95.0, 90.0, 95.0, 95.0]):
        image = image_of_two()
        image["instances"].gt_masks.polygons[1] = [polygon]
        torch.manual_seed(1)
        with EventStorage():
            losses.append({k: v.item() for k, v in model.train()([image]).items()})
    assert losses[0] == losses[1]


@OTHER_ROI_HEADS
def test_class_embeddings_are_rows_of_the_last_box_predictor(name):
    model = build_model(partially_supervised(stock_config(name)))
    heads = model.roi_heads
    embeddings = heads.mask_head.predictor.class_embeddings.tensors()
    last = heads.box_predictor[-1] if name == "cascade" else heads.box_predictor
    expected = [last.cls_score.weight[:-1]]
    if name == "C4":
        expected.append(last.bbox_pred.weight.reshape(80, -1))
    assert len(embeddings) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(embeddings, expected, strict=True))


@OTHER_ROI_HEADS
def test_classes_that_are_not_labelled_are_left_out_of_every_classification_loss(name):
    model = build_model(partially_supervised(stock_config(name)))
    is_labelled = torch.ones(80, dtype=torch.bool)
    is_labelled[50:] = False
    image = image_of_two()
    image["instances"].gt_labelled_classes = LabelledClasses(is_labelled, 2)
    with EventStorage():
        losses = model.train()([image])
        sum(loss for key, loss in losses.items() if "loss_cls" in key).backward()
    for predictor in model.roi_heads.box_predictors:
        moved = predictor.cls_score.weight.grad.abs().sum(1) > 0
        assert moved[:50].any() and not moved[50:80].any() and moved[80]


@OTHER_ROI_HEADS
def test_on_a_frozen_detector_the_mask_head_alone_learns(name):
    cfg = partially_supervised(stock_config(name))
    cfg.MODEL.META_ARCHITECTURE = "FrozenDetectorRCNN"
    model = build_model(cfg)
    model.load_state_dict(model.state_dict())
    assert set(train_step(model)) == {"loss_mask"}
    moved = {name for name, p in model.named_parameters() if p.grad is not None}
    assert moved and all(name.startswith("roi_heads.mask_head.") for name in moved)


def test_a_box_predictor_that_takes_other_classes_for_background_is_refused():
    cfg = partially_supervised(stock_config("FPN"))
    model = build_model(cfg)
    model.roi_heads.box_predictor = FastRCNNOutputLayers(cfg, model.roi_heads.box_head.output_shape)
    image = image_of_two()
    image["instances"].gt_labelled_classes = LabelledClasses(torch.ones(80, dtype=torch.bool), 2)
    with (
        EventStorage(),
        pytest.raises(ValueError, match="box_predictor is a FastRCNNOutputLayers, expected a Partially"),
    ):
        model.train()([image])


def test_features_that_are_shared_are_of_proposals():
    cfg = partially_supervised(stock_config("C4"))
    cfg.MODEL.ROI_MASK_HEAD.TRAIN_ROIS = "both"
    with pytest.raises(ValueError, match=r"TRAIN_ROIS is 'both', expected 'proposals' with MODEL"):
        build_model(cfg)
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    with pytest.raises(ValueError, match=r"train_rois is 'both', expected 'proposals' if"):
        build_model(cfg)


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("FPN", {"CLASS_EMBEDDING": "cls"}, "'StandardROIHeads', expected 'PartiallySupervisedROIHeads'"),
        ("cascade", {"CLASS_EMBEDDING": "cls"}, "expected 'PartiallySupervisedCascadeROIHeads'"),
        ("C4", {"CLASS_EMBEDDING": "cls"}, "expected 'PartiallySupervisedRes5ROIHeads'"),
    ],
)
def test_a_mask_head_whose_embeddings_nothing_connects_says_which_roi_heads_it_needs(
    name, changed, message
):
    cfg = stock_config(name)
    add_maskx_config(cfg)
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskXHead"
    for key, value in changed.items():
        cfg.MODEL.ROI_MASK_HEAD[key] = value
    with pytest.raises(ValueError, match=message):
        build_model(cfg)
    cfg.MODEL.ROI_MASK_HEAD.MASKX_PREDICTOR = "agnostic"
    build_model(cfg)


def test_a_split_that_nothing_obeys_is_an_error():
    cfg = stock_config("cascade")
    add_maskx_config(cfg)
    cfg.MODEL.ROI_MASK_HEAD.NAME, cfg.MODEL.ROI_MASK_HEAD.MASKX_PREDICTOR = "MaskXHead", "agnostic"
    cfg.DATASETS.CLASSES_WITH_MASKS = "voc"
    with pytest.raises(ValueError, match=r"CLASSES_WITH_MASKS is 'voc'.* 'PartiallySupervisedCascadeROI"):
        build_model(cfg)


def test_keys_of_other_projects_are_theirs():
    cfg = partially_supervised(stock_config("FPN"))
    cfg.SOLVER.MASKX_OPTIMIZER, cfg.DATALOADER.MASKX_DATASET_RATIO = "ADAMW", [1, 2, 3]
    build_model(cfg)


def test_a_layer_that_is_put_in_place_of_another_takes_part():
    model = build_model(partially_supervised(stock_config("FPN")))
    head = model.roi_heads.mask_head.eval()
    features = torch.rand(2, 32, 14, 14)
    before = head.mask_logits(features, torch.tensor([1, 2]))
    head.mask_fcn2 = torch.nn.Conv2d(32, 32, 3, padding=1)
    assert not torch.allclose(before, head.mask_logits(features, torch.tensor([1, 2])))
