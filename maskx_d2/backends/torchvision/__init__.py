"""The torchvision backend: Mask^X R-CNN without Detectron2, installed with pip alone."""

from maskx_d2.backends.torchvision.model import MaskXRCNN, maskx_rcnn_resnet_fpn
from maskx_d2.backends.torchvision.roi_heads import MaskXPredictor, MaskXRoIHeads

__all__ = ["MaskXPredictor", "MaskXRCNN", "MaskXRoIHeads", "maskx_rcnn_resnet_fpn"]
