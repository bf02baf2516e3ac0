"""A backbone for small images."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, build_resnet_backbone


@BACKBONE_REGISTRY.register()
def build_resnet_fpn_backbone_without_top(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """
    Detectron2's ResNet-FPN with the levels of MODEL.FPN.IN_FEATURES and no extra top level. Detectron2's
    own builder needs all stages of the ResNet, which are of no use for images of 128 pixels.
    """
    return FPN(
        bottom_up=build_resnet_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
