"""Config keys: their defaults, and the check of their values."""

import math
from pathlib import Path

import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY

from maskx_d2.backends.detectron2.mask_rois import TRAIN_ROIS
from maskx_d2.data.images import MAX_MEGAPIXELS
from maskx_d2.method import ACTIVATIONS, EMBEDDING_KINDS, HOURGLASSES, PREDICTORS
from maskx_d2.runtime.configs import check_yaml

COUNTERPARTS = {
    "StandardROIHeads": "PartiallySupervisedROIHeads",
    "CascadeROIHeads": "PartiallySupervisedCascadeROIHeads",
    "Res5ROIHeads": "PartiallySupervisedRes5ROIHeads",
}
"""Of Detectron2's ROI heads in this project."""

OPTIMIZERS = ("SGD", "AdamW")
TRUNKS = ("convs", *HOURGLASSES)


def add_maskx_config(cfg: CfgNode) -> None:
    """
    Add the keys of this project to a Detectron2 config, with their defaults. Keys that are already there
    keep their values.

    Args:
        cfg: as ``get_cfg()`` returns it.
    """
    # Classes whose masks are used in training: "all", "voc", "nonvoc", "coco", "E1_A20B60" ...
    # "E5_A60B20", or the path of a text file with one class name a line. It takes masks away, it never
    # adds any.
    _add(cfg.DATASETS, "CLASSES_WITH_MASKS", "all")

    # Datasets in COCO format to register under a name, each ["name", "annotations.json", "images/"]. A
    # fourth item is a class list, an annotation file or a text file with one name a line, of which the
    # dataset labels some: they are found by name, and the others are left out of the classification loss
    # for its images.
    _add(cfg.DATASETS, "REGISTER", [])

    # Larger images cannot be read: a file of kilobytes may stand for gigabytes of pixels.
    _add(cfg, "INPUT", CfgNode())
    _add(cfg.INPUT, "MAX_MEGAPIXELS", MAX_MEGAPIXELS)

    # How many images are drawn from each of DATASETS.TRAIN, against each other: [1, 1] draws as many from
    # each of two. Empty for as many as they have.
    _add(cfg.DATALOADER, "DATASET_RATIO", [])

    # The split that evaluation reports AP on A and B for, with the values of
    # DATASETS.CLASSES_WITH_MASKS, which it is where this is empty. An oracle trains on "all" and is
    # reported on the split of the models it is compared with.
    _add(cfg.TEST, "CLASS_SPLIT", "")

    # How many of the checkpoints that are saved every SOLVER.CHECKPOINT_PERIOD iterations stay, the newest;
    # 0 for all. Final weights stay in any case.
    _add(cfg.SOLVER, "CHECKPOINTS_TO_KEEP", 2)

    # "SGD" or "AdamW".
    _add(cfg.SOLVER, "OPTIMIZER", "SGD")

    # Whether inference regresses boxes for the pairs of proposal and class that are detected alone, instead
    # of for all classes: the same detections, for many classes sooner. For this project's ROI heads.
    _add(cfg.MODEL, "ROI_BOX_HEAD", CfgNode())
    _add(cfg.MODEL.ROI_BOX_HEAD, "GATHERED_REGRESSION", False)

    # ---- MaskXHead; the defaults are the paper's final model ----
    head = cfg.MODEL.ROI_MASK_HEAD
    # Where the mask weights of a class come from: "transfer" (Mask^X R-CNN), "agnostic" (the paper's
    # baseline) or "class_specific" (its oracle).
    _add(head, "PREDICTOR", "transfer")
    # What the weight transfer function reads: the box predictor's weights "cls", "box" or "cls+box",
    # or "file": a fixed table.
    _add(head, "CLASS_EMBEDDING", "cls+box")
    # For "file": a .npy file of shape (NUM_CLASSES, D).
    _add(head, "CLASS_EMBEDDING_FILE", "")
    # Whether the mask loss leaves the box predictor's weights alone.
    _add(head, "STOP_GRAD", True)
    # The weight transfer function.
    _add(head, "TRANSFER", CfgNode())
    _add(head.TRANSFER, "NUM_LAYERS", 2)
    _add(head.TRANSFER, "HIDDEN_DIM", 256)
    _add(head.TRANSFER, "ACTIVATION", "leaky_relu")
    # Share of a class embedding that is zeroed in training. Not in the paper.
    _add(head.TRANSFER, "EMBEDDING_DROPOUT", 0.0)
    # The class-agnostic MLP branch; 0 layers for none.
    _add(head, "MLP_BRANCH", CfgNode())
    _add(head.MLP_BRANCH, "NUM_LAYERS", 1)
    _add(head.MLP_BRANCH, "HIDDEN_DIM", 1024)
    # Above 0, the reduced form for small heads: a 1x1 convolution to so many channels, before the
    # deconvolution, in front of the layers.
    _add(head.MLP_BRANCH, "REDUCED_CHANNELS", 0)

    # ---- Beyond the paper, for MaskXHead with this project's ROI heads ----
    # Losses for RoIs whose instance has a box and no mask; see maskx_d2/method/box_supervision.py. The
    # weights of three of them, 0 for none, the iterations before them, and those after these in which they
    # rise from zero. With SOLVER.REFERENCE_WORLD_SIZE the iterations are scaled as those of SOLVER are.
    _add(head, "BOX_SUPERVISION", CfgNode())
    _add(head.BOX_SUPERVISION, "PROJECTION", 0.0)
    _add(head.BOX_SUPERVISION, "KNOWN_BACKGROUND", 0.0)
    _add(head.BOX_SUPERVISION, "PAIRWISE", 0.0)
    _add(head.BOX_SUPERVISION, "START", 0)
    _add(head.BOX_SUPERVISION, "WARMUP", 0)
    # The RoIs of the mask head in training: the sampled "proposals", the "ground_truth" boxes, or "both",
    # and how many of an image at most, drawn at random; 0 for all positive ones. Where box and mask branch
    # share their features (PartiallySupervisedRes5ROIHeads) they are "proposals".
    _add(head, "TRAIN_ROIS", "proposals")
    _add(head, "ROIS_PER_IMAGE", 0)
    # What is before the deconvolution: NUM_CONV convolutions ("convs"), or "hourglass_20", "hourglass_52"
    # or "hourglass_100" with n = CONV_DIM (64 in its paper), which needs NORM, and POOLER_RESOLUTION 32.
    _add(head, "TRUNK", "convs")


def check_has_keys(cfg: CfgNode) -> None:
    """
    Raises:
        ValueError: the config has none of the keys of this project.
    """
    if "CLASSES_WITH_MASKS" not in cfg.DATASETS:
        raise ValueError(
            "the config has no DATASETS.CLASSES_WITH_MASKS, which this project's components read: call "
            "maskx_d2.add_maskx_config(cfg) after get_cfg()"
        )


def check_maskx_config(cfg: CfgNode) -> None:
    """Raise ValueError for a value that is not allowed, naming the key, the value and what is."""
    _one_of("SOLVER.OPTIMIZER", cfg.SOLVER.OPTIMIZER, OPTIMIZERS)
    _at_least("SOLVER.CHECKPOINTS_TO_KEEP", cfg.SOLVER.CHECKPOINTS_TO_KEEP, 0)
    reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference > 0 and cfg.SOLVER.IMS_PER_BATCH % reference != 0:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, expected a multiple of "
            f"SOLVER.REFERENCE_WORLD_SIZE, {reference}: set that to 0 for a batch of your own"
        )
    if cfg.TEST.AUG.ENABLED and cfg.MODEL.KEYPOINT_ON:
        raise ValueError(
            "TEST.AUG.ENABLED is True, expected False with MODEL.KEYPOINT_ON: Detectron2 has it for boxes "
            "and masks alone"
        )
    ratio = cfg.DATALOADER.DATASET_RATIO
    are_numbers = all(type(share) in (int, float) and 0 < share < math.inf for share in ratio)
    if ratio and (len(ratio) != len(cfg.DATASETS.TRAIN) or not are_numbers):
        raise ValueError(
            f"DATALOADER.DATASET_RATIO is {ratio}, expected a positive number for each of the "
            f"{len(cfg.DATASETS.TRAIN)} datasets of DATASETS.TRAIN"
        )
    if ratio and cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
        raise ValueError(
            f"DATALOADER.SAMPLER_TRAIN is {cfg.DATALOADER.SAMPLER_TRAIN!r}, expected 'TrainingSampler': "
            "DATALOADER.DATASET_RATIO has a sampler of its own"
        )
    if cfg.MODEL.ROI_BOX_HEAD.GATHERED_REGRESSION:
        _check_roi_heads(cfg, "MODEL.ROI_BOX_HEAD.GATHERED_REGRESSION is True")
    check_mask_head_config(cfg)


def check_mask_head_config(cfg: CfgNode) -> None:
    """As :func:`check_maskx_config`, of the keys that the mask head and the ROI heads obey."""
    check_has_keys(cfg)
    head = cfg.MODEL.ROI_MASK_HEAD
    _one_of("MODEL.ROI_MASK_HEAD.PREDICTOR", head.PREDICTOR, PREDICTORS)
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
    if head.PREDICTOR != "transfer":
        return
    if head.NAME == "MaskXHead" and head.CLASS_EMBEDDING != "file":
        _check_roi_heads(cfg, f"MODEL.ROI_MASK_HEAD.CLASS_EMBEDDING is {head.CLASS_EMBEDDING!r}")
    if head.CLASS_EMBEDDING == "file" and not head.CLASS_EMBEDDING_FILE:
        raise ValueError(
            "MODEL.ROI_MASK_HEAD.CLASS_EMBEDDING is 'file', but "
            "MODEL.ROI_MASK_HEAD.CLASS_EMBEDDING_FILE is empty: give a .npy file of shape "
            f"({cfg.MODEL.ROI_HEADS.NUM_CLASSES}, D)"
        )
    if "box" in head.CLASS_EMBEDDING and cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG:
        raise ValueError(
            f"MODEL.ROI_MASK_HEAD.CLASS_EMBEDDING is {head.CLASS_EMBEDDING!r}, but with "
            "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG True the box predictor has no regression weights "
            "of a class: use 'cls' or class-specific regression"
        )


def _check_beyond_the_paper(cfg: CfgNode) -> None:
    prefix, head = "MODEL.ROI_MASK_HEAD", cfg.MODEL.ROI_MASK_HEAD
    dropout = head.TRANSFER.EMBEDDING_DROPOUT
    if not 0 <= dropout < 1:
        raise ValueError(
            f"{prefix}.TRANSFER.EMBEDDING_DROPOUT is {dropout}, expected 0 or more and less than 1"
        )
    _one_of(f"{prefix}.TRAIN_ROIS", head.TRAIN_ROIS, TRAIN_ROIS)
    _at_least(f"{prefix}.ROIS_PER_IMAGE", head.ROIS_PER_IMAGE, 0)
    _one_of(f"{prefix}.TRUNK", head.TRUNK, TRUNKS)
    if head.TRUNK != "convs" and not head.NORM:
        raise ValueError(
            f"{prefix}.NORM is '', expected a normalisation with {prefix}.TRUNK {head.TRUNK!r}"
        )
    weights = ("PROJECTION", "KNOWN_BACKGROUND", "PAIRWISE")
    for name in (*weights, "START", "WARMUP"):
        _at_least(f"{prefix}.BOX_SUPERVISION.{name}", head.BOX_SUPERVISION[name], 0)
    used = {f"{prefix}.BOX_SUPERVISION.{name}": head.BOX_SUPERVISION[name] for name in weights}
    used = {key: weight for key, weight in used.items() if weight > 0}
    for key in used:
        if head.TRAIN_ROIS == "ground_truth" and not key.endswith("KNOWN_BACKGROUND"):
            raise ValueError(
                f"{prefix}.TRAIN_ROIS is 'ground_truth', expected 'proposals' or 'both' with {key}: where "
                "a RoI is the box itself, that loss has nothing to say"
            )
    if head.TRAIN_ROIS != "proposals":
        used[f"{prefix}.TRAIN_ROIS"] = head.TRAIN_ROIS
    if head.ROIS_PER_IMAGE > 0:
        used[f"{prefix}.ROIS_PER_IMAGE"] = head.ROIS_PER_IMAGE
    for key, value in used.items():
        _check_roi_heads(cfg, f"{key} is {value!r}")
    if head.TRAIN_ROIS != "proposals" and roi_heads_are(cfg, "Res5ROIHeads"):
        raise ValueError(
            f"{prefix}.TRAIN_ROIS is {head.TRAIN_ROIS!r}, expected 'proposals' with MODEL.ROI_HEADS.NAME "
            f"{cfg.MODEL.ROI_HEADS.NAME!r}, where box and mask branch share their features"
        )


def load_config(config_file: str, overrides: list | None = None) -> CfgNode:
    """
    Read a YAML config over the defaults, override keys, and check.

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
        raise FileNotFoundError(f"config {config_file!r} is not a file")
    check_yaml(Path(config_file))
    cfg = get_cfg()
    add_maskx_config(cfg)
    try:
        cfg.merge_from_file(config_file)
    except (AssertionError, KeyError, yaml.YAMLError) as error:
        raise ValueError(f"config {config_file}: {' '.join(str(error).split())}") from error
    try:
        cfg.merge_from_list(overrides or [])
    except (AssertionError, KeyError) as error:
        raise ValueError(f"config keys {overrides}: {error}") from error
    check_maskx_config(cfg)
    return cfg


def in_place_of(roi_heads: str) -> str:
    """The name of this project's ROI heads for those of Detectron2; for others the standard ones."""
    return COUNTERPARTS.get(roi_heads, COUNTERPARTS["StandardROIHeads"])


def _check_roi_heads(cfg: CfgNode, why: str) -> None:
    """Raise ValueError unless they are of this project, which ``why`` needs."""
    name = cfg.MODEL.ROI_HEADS.NAME
    if not roi_heads_are(cfg, "PartialSupervision"):
        raise ValueError(f"{why}, but MODEL.ROI_HEADS.NAME is {name!r}, expected {in_place_of(name)!r}")


def roi_heads_are(cfg: CfgNode, name: str) -> bool:
    """Whether those of a config are of a class of this name, which may be a base of theirs."""
    # By name: the module of such a class imports this one.
    roi_heads = cfg.MODEL.ROI_HEADS.NAME
    bases = ROI_HEADS_REGISTRY.get(roi_heads).__mro__ if roi_heads in ROI_HEADS_REGISTRY else ()
    return any(base.__name__ == name for base in bases)


def _add(node: CfgNode, key: str, default) -> None:
    if key not in node:
        node[key] = default


def _one_of(key: str, value, allowed: tuple) -> None:
    if value not in allowed:
        raise ValueError(f"{key} is {value!r}, expected one of {', '.join(map(repr, allowed))}")


def _at_least(key: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{key} is {value!r}, expected {least} or more")
