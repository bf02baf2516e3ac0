"""
Mask^X R-CNN end to end, as maskx_R_50_FPN_1x.yaml, for Detectron2's tools/lazyconfig_train_net.py:
``import maskx_d2`` is not needed there, this file has all.
"""

from detectron2.model_zoo import get_config

from maskx_d2.backends.detectron2.lazy_config import partially_supervise

model = get_config("common/models/mask_rcnn_fpn.py").model
model.backbone.bottom_up.freeze_at = 2
model.roi_heads.box_pooler.sampling_ratio = 2
model.roi_heads.mask_pooler.sampling_ratio = 2

dataloader = get_config("common/data/coco.py").dataloader
dataloader.train.mapper.augmentations[0].short_edge_length = (800,)
partially_supervise(model, dataloader, split="voc", output_dir="output/lazy/maskx_R_50_FPN_1x")

optimizer = get_config("common/optim.py").SGD
lr_multiplier = get_config("common/coco_schedule.py").lr_multiplier_1x
train = get_config("common/train.py").train
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
train.output_dir = "output/lazy/maskx_R_50_FPN_1x"
