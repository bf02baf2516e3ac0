"""
The Detectron2 backend. Importing it registers its components and Visual Genome; :func:`add_maskx_config`
adds its keys to a config.
"""

from maskx_d2.backends.detectron2.backbone import build_resnet_fpn_backbone_without_top
from maskx_d2.backends.detectron2.box_predictor import (
    GatheredFastRCNNOutputLayers,
    PartiallyLabelledFastRCNNOutputLayers,
)
from maskx_d2.backends.detectron2.config_keys import add_maskx_config
from maskx_d2.backends.detectron2.data_loader import build_train_loader
from maskx_d2.backends.detectron2.dataset_mapper import PartiallySupervisedMapper
from maskx_d2.backends.detectron2.datasets import register_visual_genome
from maskx_d2.backends.detectron2.evaluator import PartiallySupervisedEvaluator
from maskx_d2.backends.detectron2.frozen_detector import FrozenDetectorRCNN
from maskx_d2.backends.detectron2.labelled_classes import LabelledClasses
from maskx_d2.backends.detectron2.mask_head import MaskXHead
from maskx_d2.backends.detectron2.partial_supervision import PartialSupervision
from maskx_d2.backends.detectron2.roi_heads import (
    PartiallySupervisedCascadeROIHeads,
    PartiallySupervisedRes5ROIHeads,
    PartiallySupervisedROIHeads,
)
from maskx_d2.backends.detectron2.trainer import Trainer

__all__ = [
    "FrozenDetectorRCNN",
    "GatheredFastRCNNOutputLayers",
    "LabelledClasses",
    "MaskXHead",
    "PartialSupervision",
    "PartiallyLabelledFastRCNNOutputLayers",
    "PartiallySupervisedCascadeROIHeads",
    "PartiallySupervisedEvaluator",
    "PartiallySupervisedMapper",
    "PartiallySupervisedROIHeads",
    "PartiallySupervisedRes5ROIHeads",
    "Trainer",
    "add_maskx_config",
    "build_resnet_fpn_backbone_without_top",
    "build_train_loader",
]

register_visual_genome()
