"""
Mask^X R-CNN on ViTDet-B, for Detectron2's tools/lazyconfig_train_net.py. Nobody has run it on COCO yet.
"""

from maskx_d2.backends.detectron2.lazy_config import partially_supervise

from .vitdet_b_100ep import dataloader, lr_multiplier, model, optimizer, train

__all__ = ["dataloader", "lr_multiplier", "model", "optimizer", "train"]

partially_supervise(model, dataloader, split="voc", output_dir="output/lazy/maskx_vitdet_b_100ep")
train.output_dir = "output/lazy/maskx_vitdet_b_100ep"
