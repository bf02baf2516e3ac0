"""
Mask^X R-CNN end to end, as maskx_R_50_FPN_1x.yaml, for Detectron2's tools/lazyconfig_train_net.py:
``import maskx_d2`` is not needed there, this file has all.
"""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.model_zoo import get_config

from maskx_d2.hosts.detectron2 import (
    MaskXHead,
    PartiallySupervisedEvaluator,
    PartiallySupervisedMapper,
    PartiallySupervisedROIHeads,
)
from maskx_d2.hosts.detectron2.class_split import ClassHasMask, classes_with_masks_of
from maskx_d2.hosts.detectron2.data_loader import load_without_masks
from maskx_d2.method import build_mask_predictor

SPLIT = "voc"
NUM_CLASSES = 80

model = get_config("common/models/mask_rcnn_fpn.py").model
model.backbone.bottom_up.freeze_at = 2
model.roi_heads._target_ = PartiallySupervisedROIHeads
model.roi_heads.get_class_has_mask = L(ClassHasMask)(dataset_name="coco_2017_train", split=SPLIT)
model.roi_heads.box_pooler.sampling_ratio = 2
model.roi_heads.mask_pooler.sampling_ratio = 2
model.roi_heads.mask_head = L(MaskXHead)(
    input_shape=ShapeSpec(channels=256, width=14, height=14),
    conv_dims=[256, 256, 256, 256, 256],
    predictor=L(build_mask_predictor)(
        predictor="transfer",
        num_classes=NUM_CLASSES,
        in_channels=256,
        mask_side=28,
        box_feature_dim=1024,
    ),
)

dataloader = get_config("common/data/coco.py").dataloader
dataloader.train.dataset = L(load_without_masks)(dataset_name="coco_2017_train", split=SPLIT)
dataloader.train.mapper._target_ = PartiallySupervisedMapper
dataloader.train.mapper.augmentations[0].short_edge_length = (800,)
dataloader.evaluator = L(PartiallySupervisedEvaluator)(
    dataset_name="coco_2017_val",
    classes_with_masks=L(classes_with_masks_of)(dataset_name="coco_2017_val", split=SPLIT),
)

optimizer = get_config("common/optim.py").SGD
lr_multiplier = get_config("common/coco_schedule.py").lr_multiplier_1x
train = get_config("common/train.py").train
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
train.output_dir = "output/lazy/maskx_R_50_FPN_1x"
