"""
As maskx_vitdet_b_100ep.py, with a cascade of box heads: class embeddings are those of its last stage.
Nobody has run it on COCO yet.
"""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.model_zoo import get_config
from detectron2.modeling.roi_heads import FastRCNNConvFCHead

from maskx_d2.backends.detectron2.lazy_config import partially_supervise

from .vitdet_b_100ep import dataloader, lr_multiplier, model, optimizer, train

__all__ = ["dataloader", "lr_multiplier", "model", "optimizer", "train"]

mask_head = model.roi_heads.mask_head
model.roi_heads = get_config("common/models/cascade_rcnn.py").model.roi_heads
model.roi_heads.mask_head = mask_head
model.roi_heads.box_heads = [
    L(FastRCNNConvFCHead)(
        input_shape=ShapeSpec(channels=256, height=7, width=7),
        conv_dims=[256, 256, 256, 256],
        fc_dims=[1024],
        conv_norm="LN",
    )
    for _ in range(3)
]
partially_supervise(model, dataloader, split="voc", output_dir="output/lazy/maskx_cascade_vitdet_b_100ep")
train.output_dir = "output/lazy/maskx_cascade_vitdet_b_100ep"
