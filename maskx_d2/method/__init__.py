"""Mask^X R-CNN, and extensions that are not in the paper, in plain torch. Independent of the backends."""

from maskx_d2.method.box_supervision import BoxSupervision
from maskx_d2.method.class_embeddings import (
    EMBEDDING_KINDS,
    BoxPredictorEmbeddings,
    BoxPredictorWeights,
    FixedEmbeddings,
    box_embedding_dim,
)
from maskx_d2.method.expected_iou import expected_iou
from maskx_d2.method.hourglass import HOURGLASSES, Hourglass
from maskx_d2.method.mask_loss import mask_loss, mask_statistics
from maskx_d2.method.mask_predictor import (
    PREDICTORS,
    ClassAgnosticMaskPredictor,
    ClassSpecificMaskPredictor,
    MaskPredictor,
    MLPBranch,
    TransferMaskPredictor,
    build_mask_predictor,
    class_mask_logits,
)
from maskx_d2.method.recipe import Recipe, Schedule, ramp
from maskx_d2.method.teacher_supervision import TeacherSupervision
from maskx_d2.method.weight_transfer import ACTIVATIONS, WeightTransfer

__all__ = [
    "ACTIVATIONS",
    "EMBEDDING_KINDS",
    "HOURGLASSES",
    "PREDICTORS",
    "BoxPredictorEmbeddings",
    "BoxPredictorWeights",
    "BoxSupervision",
    "ClassAgnosticMaskPredictor",
    "ClassSpecificMaskPredictor",
    "FixedEmbeddings",
    "Hourglass",
    "MLPBranch",
    "MaskPredictor",
    "Recipe",
    "Schedule",
    "TeacherSupervision",
    "TransferMaskPredictor",
    "WeightTransfer",
    "box_embedding_dim",
    "build_mask_predictor",
    "class_mask_logits",
    "expected_iou",
    "mask_loss",
    "mask_statistics",
    "ramp",
]
