"""The torchvision backend: Mask^X R-CNN where only pip works."""

from maskx_d2.backends.torchvision.model import MaskXRCNN, maskx_rcnn_resnet_fpn
from maskx_d2.backends.torchvision.roi_heads import MaskXPredictor, MaskXRoIHeads

__all__ = ["MaskXPredictor", "MaskXRCNN", "MaskXRoIHeads", "maskx_rcnn_resnet_fpn"]
