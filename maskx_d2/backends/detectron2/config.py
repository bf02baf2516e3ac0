"""Reads a YAML config and checks its values."""

import math
from pathlib import Path

import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY

from maskx_d2.backends.detectron2.config_keys import add_maskx_config
from maskx_d2.backends.detectron2.mask_rois import TRAIN_ROIS
from maskx_d2.data.errors import InputError, MissingFileError
from maskx_d2.method import ACTIVATIONS, EMBEDDING_KINDS, HOURGLASSES, PREDICTORS
from maskx_d2.runtime.configs import RENAMED_KEYS, check_yaml, with_new_keys

COUNTERPARTS = {
    "StandardROIHeads": "PartiallySupervisedROIHeads",
    "CascadeROIHeads": "PartiallySupervisedCascadeROIHeads",
    "Res5ROIHeads": "PartiallySupervisedRes5ROIHeads",
}
"""Detectron2's ROI heads -> their counterparts in this project."""

OPTIMIZERS = ("SGD", "AdamW")
TRUNKS = ("convs", *HOURGLASSES)


def check_has_keys(cfg: CfgNode) -> None:
    """
    Raises:
        ValueError: the config has none of the keys of this project.
    """
    if "CLASSES_WITH_MASKS" not in cfg.DATASETS:
        raise InputError(
            "the config has no DATASETS.CLASSES_WITH_MASKS, which this project's components read: call "
            "maskx_d2.add_maskx_config(cfg) after get_cfg()"
        )


def check_maskx_config(cfg: CfgNode) -> None:
    """Raise ValueError for a value that is not allowed, naming the key, the value and what is allowed."""
    _one_of("SOLVER.MASKX_OPTIMIZER", cfg.SOLVER.MASKX_OPTIMIZER, OPTIMIZERS)
    _at_least("SOLVER.CHECKPOINTS_TO_KEEP", cfg.SOLVER.CHECKPOINTS_TO_KEEP, 0)
    reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference > 0 and cfg.SOLVER.IMS_PER_BATCH % reference != 0:
        raise InputError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, expected a multiple of "
            f"SOLVER.REFERENCE_WORLD_SIZE, {reference}: set that to 0 to choose your own batch size"
        )
    if cfg.TEST.AUG.ENABLED and cfg.MODEL.KEYPOINT_ON:
        raise InputError(
            "TEST.AUG.ENABLED is True, expected False with MODEL.KEYPOINT_ON: Detectron2 supports it for "
            "boxes and masks only"
        )
    ratio = cfg.DATALOADER.MASKX_DATASET_RATIO
    are_numbers = all(type(share) in (int, float) and 0 < share < math.inf for share in ratio)
    if ratio and (len(ratio) != len(cfg.DATASETS.TRAIN) or not are_numbers):
        raise InputError(
            f"DATALOADER.MASKX_DATASET_RATIO is {ratio}, expected a positive number for each of the "
            f"{len(cfg.DATASETS.TRAIN)} datasets of DATASETS.TRAIN"
        )
    if ratio and cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
        raise InputError(
            f"DATALOADER.SAMPLER_TRAIN is {cfg.DATALOADER.SAMPLER_TRAIN!r}, expected 'TrainingSampler': "
            "DATALOADER.MASKX_DATASET_RATIO uses its own sampler"
        )
    if cfg.MODEL.ROI_BOX_HEAD.GATHERED_REGRESSION:
        _check_roi_heads(cfg, "MODEL.ROI_BOX_HEAD.GATHERED_REGRESSION is True")
    check_mask_head_config(cfg)


def check_mask_head_config(cfg: CfgNode) -> None:
    """Like :func:`check_maskx_config`, for the keys that the mask head and the ROI heads read."""
    check_has_keys(cfg)
    head = cfg.MODEL.ROI_MASK_HEAD
    _one_of("MODEL.ROI_MASK_HEAD.MASKX_PREDICTOR", head.MASKX_PREDICTOR, PREDICTORS)
    _one_of("MODEL.ROI_MASK_HEAD.CLASS_EMBEDDING", head.CLASS_EMBEDDING, (*EMBEDDING_KINDS, "file"))
    _one_of("MODEL.ROI_MASK_HEAD.TRANSFER.NUM_LAYERS", head.TRANSFER.NUM_LAYERS, (1, 2, 3))
    _one_of("MODEL.ROI_MASK_HEAD.TRANSFER.ACTIVATION", head.TRANSFER.ACTIVATION, ACTIVATIONS)
    _at_least("MODEL.ROI_MASK_HEAD.TRANSFER.HIDDEN_DIM", head.TRANSFER.HIDDEN_DIM, 1)
    _one_of("MODEL.ROI_MASK_HEAD.MLP_BRANCH.NUM_LAYERS", head.MLP_BRANCH.NUM_LAYERS, (0, 1, 2, 3))
    _at_least("MODEL.ROI_MASK_HEAD.MLP_BRANCH.HIDDEN_DIM", head.MLP_BRANCH.HIDDEN_DIM, 1)
    _at_least("MODEL.ROI_MASK_HEAD.MLP_BRANCH.REDUCED_CHANNELS", head.MLP_BRANCH.REDUCED_CHANNELS, 0)
    _check_beyond_the_paper(cfg)
    if cfg.DATASETS.CLASSES_WITH_MASKS != "all" and cfg.MODEL.MASK_ON:
        _check_roi_heads(cfg, f"DATASETS.CLASSES_WITH_MASKS is {cfg.DATASETS.CLASSES_WITH_MASKS!r}")
    if head.MASKX_PREDICTOR != "transfer":
        return
    if head.NAME == "MaskXHead" and head.CLASS_EMBEDDING != "file":
        _check_roi_heads(cfg, f"MODEL.ROI_MASK_HEAD.CLASS_EMBEDDING is {head.CLASS_EMBEDDING!r}")
    if head.CLASS_EMBEDDING == "file" and not head.CLASS_EMBEDDING_FILE:
        raise InputError(
            "MODEL.ROI_MASK_HEAD.CLASS_EMBEDDING is 'file', but "
            "MODEL.ROI_MASK_HEAD.CLASS_EMBEDDING_FILE is empty: give a .npy file of shape "
            f"({cfg.MODEL.ROI_HEADS.NUM_CLASSES}, D)"
        )
    if "box" in head.CLASS_EMBEDDING and cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG:
        raise InputError(
            f"MODEL.ROI_MASK_HEAD.CLASS_EMBEDDING is {head.CLASS_EMBEDDING!r}, but with "
            "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG True the box predictor has no regression weights "
            "per class: use 'cls' or class-specific regression"
        )


def _check_beyond_the_paper(cfg: CfgNode) -> None:
    prefix, head = "MODEL.ROI_MASK_HEAD", cfg.MODEL.ROI_MASK_HEAD
    dropout = head.TRANSFER.EMBEDDING_DROPOUT
    if not 0 <= dropout < 1:
        raise InputError(
            f"{prefix}.TRANSFER.EMBEDDING_DROPOUT is {dropout}, expected 0 or more and less than 1"
        )
    _one_of(f"{prefix}.TRAIN_ROIS", head.TRAIN_ROIS, TRAIN_ROIS)
    _at_least(f"{prefix}.ROIS_PER_IMAGE", head.ROIS_PER_IMAGE, 0)
    _one_of(f"{prefix}.TRUNK", head.TRUNK, TRUNKS)
    if head.TRUNK != "convs" and not head.NORM:
        raise InputError(
            f"{prefix}.NORM is '', expected a normalisation with {prefix}.TRUNK {head.TRUNK!r}"
        )
    weights = ("PROJECTION", "KNOWN_BACKGROUND", "PAIRWISE")
    for name in (*weights, "START", "WARMUP"):
        _at_least(f"{prefix}.BOX_SUPERVISION.{name}", head.BOX_SUPERVISION[name], 0)
    used = {f"{prefix}.BOX_SUPERVISION.{name}": head.BOX_SUPERVISION[name] for name in weights}
    used = {key: weight for key, weight in used.items() if weight > 0}
    for key in used:
        if head.TRAIN_ROIS == "ground_truth" and not key.endswith("KNOWN_BACKGROUND"):
            raise InputError(
                f"{prefix}.TRAIN_ROIS is 'ground_truth', expected 'proposals' or 'both' with {key}: where "
                "a RoI is the box itself, that loss has nothing to say"
            )
    _at_least(f"{prefix}.TEACHER.WEIGHT", head.TEACHER.WEIGHT, 0)
    if not 0 <= head.TEACHER.MIN_SCORE <= 1:
        raise InputError(f"{prefix}.TEACHER.MIN_SCORE is {head.TEACHER.MIN_SCORE}, expected 0 to 1")
    if head.TEACHER.WEIGHT > 0:
        used[f"{prefix}.TEACHER.WEIGHT"] = head.TEACHER.WEIGHT
    if head.TRAIN_ROIS != "proposals":
        used[f"{prefix}.TRAIN_ROIS"] = head.TRAIN_ROIS
    if head.ROIS_PER_IMAGE > 0:
        used[f"{prefix}.ROIS_PER_IMAGE"] = head.ROIS_PER_IMAGE
    for key, value in used.items():
        _check_roi_heads(cfg, f"{key} is {value!r}")
    if head.TRAIN_ROIS != "proposals" and roi_heads_are(cfg, "Res5ROIHeads"):
        raise InputError(
            f"{prefix}.TRAIN_ROIS is {head.TRAIN_ROIS!r}, expected 'proposals' with MODEL.ROI_HEADS.NAME "
            f"{cfg.MODEL.ROI_HEADS.NAME!r}, whose box and mask branches share features"
        )


def load_config(config_file: str, overrides: list | None = None) -> CfgNode:
    """
    Read a YAML config on top of the defaults, apply overrides, and check the values.

    Args:
        config_file: path of the YAML file.
        overrides: ``[KEY, VALUE, KEY, VALUE, ...]``.

    Returns:
        The config, not frozen.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a key does not exist, or its value is not allowed.
    """
    if not Path(config_file).is_file():
        raise MissingFileError(f"config {config_file!r} is not a file")
    check_yaml(Path(config_file))
    cfg = get_cfg()
    add_maskx_config(cfg)
    for old, new in RENAMED_KEYS.items():
        cfg.register_renamed_key(old, new)
    try:
        _merge_from_file(cfg, config_file)
    except (AssertionError, KeyError, yaml.YAMLError) as error:
        raise InputError(f"config {config_file}: {' '.join(str(error.args[0]).split())}") from error
    try:
        cfg.merge_from_list(overrides or [])
    except (AssertionError, KeyError) as error:
        raise InputError(f"config keys {overrides}: {error.args[0]}") from error
    check_maskx_config(cfg)
    return cfg


def _merge_from_file(cfg: CfgNode, config_file: str) -> None:
    if yaml.compose(Path(config_file).read_text(encoding="utf-8")) is None:
        return  # an empty file, which Detectron2 cannot read
    values = cfg.load_yaml_with_base(config_file)
    renamed = with_new_keys(values)
    if renamed is values:
        cfg.merge_from_file(config_file)
    else:
        cfg.merge_from_other_cfg(CfgNode(renamed))


def in_place_of(roi_heads: str) -> str:
    """The name of this project's counterpart of ROI heads of Detectron2; for others, the standard one."""
    return COUNTERPARTS.get(roi_heads, COUNTERPARTS["StandardROIHeads"])


def _check_roi_heads(cfg: CfgNode, why: str) -> None:
    """Raise ValueError unless the ROI heads are this project's, which ``why`` requires."""
    name = cfg.MODEL.ROI_HEADS.NAME
    if not roi_heads_are(cfg, "PartialSupervision"):
        raise InputError(f"{why}, but MODEL.ROI_HEADS.NAME is {name!r}, expected {in_place_of(name)!r}")


def roi_heads_are(cfg: CfgNode, name: str) -> bool:
    """Whether the ROI heads of a config are of a class of this name, or of a subclass."""
    # Compared by name, because the module of such a class imports this one.
    roi_heads = cfg.MODEL.ROI_HEADS.NAME
    bases = ROI_HEADS_REGISTRY.get(roi_heads).__mro__ if roi_heads in ROI_HEADS_REGISTRY else ()
    return any(base.__name__ == name for base in bases)


def _one_of(key: str, value, allowed: tuple) -> None:
    if value not in allowed:
        raise InputError(f"{key} is {value!r}, expected one of {', '.join(map(repr, allowed))}")


def _at_least(key: str, value: int, least: int) -> None:
    if not value >= least:  # true of NaN too
        raise InputError(f"{key} is {value!r}, expected {least} or more")
