"""``recipe_config``: a recipe as config keys."""

from detectron2.config import CfgNode

from maskx_d2.backends.detectron2.config import check_maskx_config
from maskx_d2.method import HOURGLASSES, Recipe

_HEADS = {
    "StandardROIHeads": "PartiallySupervisedROIHeads",
    "CascadeROIHeads": "PartiallySupervisedCascadeROIHeads",
}


def recipe_keys(recipe: Recipe) -> dict[str, object]:
    """The keys of MODEL.ROI_MASK_HEAD that a recipe sets, and their values."""
    keys: dict[str, object] = {
        "MASKX_PREDICTOR": recipe.predictor,
        "CLASS_EMBEDDING": recipe.class_embedding,
        "TRANSFER.EMBEDDING_DROPOUT": recipe.embedding_dropout,
        "MLP_BRANCH.NUM_LAYERS": recipe.mlp_layers,
        "MLP_BRANCH.REDUCED_CHANNELS": recipe.mlp_reduced_channels,
        "TRUNK": recipe.trunk,
        "CONV_DIM": recipe.channels,
        "TRAIN_ROIS": recipe.train_rois,
        **{f"BOX_SUPERVISION.{name.upper()}": w for name, w in recipe.box_supervision.items()},
        **{f"TEACHER.{name.upper()}": value for name, value in recipe.teacher.items()},
    }
    if recipe.trunk in HOURGLASSES:
        keys |= {"POOLER_RESOLUTION": 32, "NORM": "GN"}
    return keys


def recipe_config(cfg: CfgNode, recipe: Recipe) -> CfgNode:
    """
    Args:
        cfg: config of a detector.
        recipe: for a mask head on it.

    Returns:
        The config of the whole model.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.ROI_HEADS.NAME = _HEADS.get(cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.ROI_HEADS.NAME)
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskXHead"
    cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK = False
    for name, value in recipe_keys(recipe).items():
        cfg.merge_from_list([f"MODEL.ROI_MASK_HEAD.{name}", value])
    check_maskx_config(cfg)
    return cfg
