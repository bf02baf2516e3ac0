"""``convert_checkpoint``: converts models of seg_every_thing, the authors' Caffe2 code, to this backend."""

import re
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from detectron2.checkpoint.c2_model_loading import convert_c2_detectron_names
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor

from maskx_d2.backends.detectron2.checkpoint import ClassList, KnownClasses, read_pickle
from maskx_d2.backends.detectron2.class_split import category_ids, class_names
from maskx_d2.backends.detectron2.config import load_config
from maskx_d2.data.class_names import read_class_names
from maskx_d2.data.class_splits import classes_with_masks as split_indices
from maskx_d2.data.errors import InputError
from maskx_d2.data.files import check_keeps_inputs, check_replaceable, replacing, write_json, write_text
from maskx_d2.runtime.configs import config_file

_BACKUP = "_jcvbackup"
# Number of blocks in res4 -> depth.
_DEPTHS = {6: 50, 23: 101, 36: 152}
# From ImageNet pre-training and the solver; some files have them, but they are not used.
_UNUSED = re.compile(r".*_momentum|.*_jcvbackup|fc1000_[wb]|pred_[wb]|conv1_b|lr|model_iter")
_DATASETS = {3001: "vg3k_val", 80: "coco_2017_val"}
# Blobs whose sizes are read -> number of dimensions.
_NEEDED = {
    **dict.fromkeys(("conv1_w", "res2_0_branch1_w", "res2_0_branch2a_w", "fpn_inner_res5_2_sum_w"), 4),
    **{"_[mask]_fcn1_w": 4, "conv5_mask_w": 4},
    **{"fc7_w": 2, "cls_score_w": 2, "bbox_pred_w": 2, "mask_fcn_logits_w_flat_w": 2},
}
_MOST_NAMED = 8


def convert_checkpoint(
    path: Path, output: Path, *, classes: Path | None = None, classes_with_masks: str | None = None
) -> Path:
    """
    Convert a checkpoint of seg_every_thing with a weight transfer function to one of this project. All
    sizes are read from the file. A detector whose rows were cut to COCO's classes gets all its rows back.

    Args:
        path: the pickle.
        output: the folder that ``model_final.pth`` and ``config.yaml`` are written to.
        classes: class list, for a model with neither Visual Genome's 3,001 classes nor COCO's 80.
        classes_with_masks: the split that it was trained with, see ``maskx splits``; if None, COCO's
            classes for a model that has them, and all classes otherwise.

    Returns:
        The path of the config.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is something else, or blobs are missing, unknown or of another shape; the message
            names them.
    """
    config, weights, class_list = (output / n for n in ("config.yaml", "model_final.pth", "classes.json"))
    check_keeps_inputs([config, weights, class_list], [path, *([classes] if classes else [])])
    for file in (config, weights, class_list):
        check_replaceable(file)
    blobs, settings = _read(path)
    shapes = {name: np.shape(blob) for name, blob in blobs.items()}
    _check_blobs(
        path,
        missing=[name for name in _NEEDED if name not in blobs],
        misshapen=[
            f"{name} is {shapes[name]}, expected {dimensions} dimensions"
            for name, dimensions in _NEEDED.items()
            if name in blobs and len(shapes[name]) != dimensions
        ],
    )
    cfg = _config(path, blobs, settings)
    names = _class_names(cfg, classes)
    state = _state(path, blobs, _parameters(cfg))
    output.mkdir(parents=True, exist_ok=True)
    cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR = str(weights.resolve()), str(output.resolve())
    if classes is not None:
        categories = [{"id": i, "name": name} for i, name in enumerate(names, start=1)]
        write_json(class_list, {"images": [], "annotations": [], "categories": categories})
        name = f"classes of {output.resolve()}"
        cfg.DATASETS.MASKX_REGISTER = [[name, str(class_list.resolve()), str(output.resolve())]]
        cfg.DATASETS.TEST, cfg.TEST.MASKX_CLASS_SPLIT = (name,), "all"
    cfg.TEST.MASKX_CLASS_SPLIT = classes_with_masks or cfg.TEST.MASKX_CLASS_SPLIT
    known = _known_classes(cfg, names)
    with replacing(weights) as temporary, temporary.open("wb") as file:
        torch.save({"model": state, ClassList.KEY: asdict(known)}, file)
    write_text(config, known.written_into(cfg).dump())
    return config


def _known_classes(cfg: CfgNode, names: list[str]) -> KnownClasses:
    own = cfg.DATASETS.MASKX_REGISTER or not cfg.DATASETS.TEST
    ids = list(range(1, 1 + len(names))) if own else category_ids(cfg.DATASETS.TEST[0])
    split = cfg.TEST.MASKX_CLASS_SPLIT or cfg.DATASETS.CLASSES_WITH_MASKS
    return KnownClasses(names, ids, split_indices(split, names))


def _read(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """The blobs, and the settings that they were trained with, as YAML with Python's tags."""
    content = read_pickle(path)
    blobs = content.get("blobs") if isinstance(content, dict) else None
    if not isinstance(blobs, dict) or not all(
        isinstance(name, str) and isinstance(blob, np.ndarray | np.generic | int | float)
        for name, blob in blobs.items()
    ):
        raise InputError(f"checkpoint {path} has no 'blobs', expected one of Caffe2's Detectron")
    cut = {name.removesuffix(_BACKUP): blob for name, blob in blobs.items() if name.endswith(_BACKUP)}
    blobs = {name: blob for name, blob in {**blobs, **cut}.items() if not _UNUSED.fullmatch(name)}
    settings = content.get("cfg")
    return blobs, settings if isinstance(settings, str) else ""


def _config(path: Path, blobs: dict[str, np.ndarray], settings: str) -> CfgNode:
    """A config that fits the sizes of the blobs."""
    blocks = _count(blobs, r"res4_\d+_branch2a_w")
    if blocks not in _DEPTHS:
        raise InputError(
            f"checkpoint {path} has {blocks} blocks in res4, expected one of {', '.join(map(str, _DEPTHS))}"
        )
    num_classes, feature_dim = blobs["cls_score_w"].shape[0] - 1, blobs["fc7_w"].shape[0]
    first = "bbox2mask_mlp_l1_w" if "bbox2mask_mlp_l1_w" in blobs else "mask_fcn_logits_w_flat_w"
    embeddings = {feature_dim: "cls", 4 * feature_dim: "box", 5 * feature_dim: "cls+box"}
    hidden_dim, embedding_dim = np.atleast_2d(blobs[first]).shape[:2]
    if embedding_dim not in embeddings:
        raise InputError(
            f"checkpoint {path} has a weight transfer function for embeddings of {embedding_dim} numbers, "
            f"expected one of {', '.join(map(str, embeddings))}, as many as its box predictor has weights"
        )
    head = "MODEL.ROI_MASK_HEAD"
    joint = "mask_mlp_logits_raw_w" in blobs
    options = [
        *("MODEL.RESNETS.DEPTH", _DEPTHS[blocks]),
        *("MODEL.RESNETS.STEM_OUT_CHANNELS", blobs["conv1_w"].shape[0]),
        *("MODEL.RESNETS.RES2_OUT_CHANNELS", blobs["res2_0_branch1_w"].shape[0]),
        *("MODEL.RESNETS.WIDTH_PER_GROUP", blobs["res2_0_branch2a_w"].shape[0]),
        *("MODEL.FPN.OUT_CHANNELS", blobs["fpn_inner_res5_2_sum_w"].shape[0]),
        *("MODEL.ROI_HEADS.NUM_CLASSES", num_classes, "MODEL.ROI_BOX_HEAD.FC_DIM", feature_dim),
        *(f"{head}.NUM_CONV", _count(blobs, r"_\[mask\]_fcn\d+_w")),
        *(f"{head}.CONV_DIM", blobs["conv5_mask_w"].shape[0]),
        *(f"{head}.CLASS_EMBEDDING", embeddings[embedding_dim]),
        *(f"{head}.TRANSFER.NUM_LAYERS", 1 + len(_numbered(blobs, "bbox2mask_mlp_l"))),
        *(f"{head}.TRANSFER.HIDDEN_DIM", hidden_dim),
        *(f"{head}.MLP_BRANCH.NUM_LAYERS", joint * (1 + len(_numbered(blobs, "fc_mask_head_mlp_l")))),
        *(f"{head}.MLP_BRANCH.HIDDEN_DIM", np.size(blobs.get("fc_mask_head_mlp_l1_b", np.empty(1024)))),
    ]
    if re.search(r"USE_LEAKYRELU['\"]?:\s*false", settings, re.IGNORECASE):
        options += [f"{head}.TRANSFER.ACTIVATION", "relu"]
    if num_classes in _DATASETS:
        options += ["DATASETS.TEST", (_DATASETS[num_classes],)]
    return load_config(str(config_file("visual_genome/authors_R_50_FPN.yaml")), options)


def _count(blobs: dict[str, np.ndarray], pattern: str) -> int:
    return sum(re.fullmatch(pattern, name) is not None for name in blobs)


def _numbered(blobs: dict[str, np.ndarray], name: str) -> list[str]:
    return [f"{name}{i}" for i in range(1, 1 + _count(blobs, rf"{name}\d_w"))]


def _parameters(cfg: CfgNode) -> dict[str, Tensor]:
    """The parameters of a newly built model."""
    cfg = cfg.clone()
    cfg.MODEL.DEVICE = "cpu"
    return build_model(cfg).state_dict()


def _class_names(cfg: CfgNode, classes: Path | None) -> list[str]:
    num_classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if classes is None:
        if num_classes not in _DATASETS:
            raise InputError(f"the model has {num_classes} classes, expected --classes with their names")
        return class_names(_DATASETS[num_classes])
    names = read_class_names(classes)
    if len(names) != num_classes:
        raise InputError(f"{classes} has {len(names)} classes, expected the model's {num_classes}")
    return names


def _state(path: Path, blobs: dict[str, np.ndarray], model: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parameters of a model, from blobs."""
    tensors = {name: torch.from_numpy(np.asarray(blob)).float() for name, blob in blobs.items()}
    state: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for name, key in _of_mask_predictor(blobs).items():
        state[f"roi_heads.mask_head.predictor.{key}"] = tensors.pop(name)
        origin[f"roi_heads.mask_head.predictor.{key}"] = name
    # Removes background rows or moves them to the end, and gives Detectron2's names, without their prefix.
    renamed, of_caffe2 = convert_c2_detectron_names(tensors)
    unknown = []
    for suffix, tensor in renamed.items():
        keys = [key for key in model if f".{key}".endswith(f".{suffix}")]
        if len(keys) == 1:
            state[keys[0]], origin[keys[0]] = tensor, of_caffe2[suffix]
        else:
            unknown.append(of_caffe2[suffix])
    for key, value in model.items():
        if key.endswith(("norm.running_mean", "norm.running_var")):
            state[key] = value  # Detectron folds them into scale and bias
    misshapen = [
        f"{origin[key]} is {tuple(state[key].shape)}, expected {tuple(value.shape)}"
        for key, value in model.items()
        if key in state and state[key].shape != value.shape
    ]
    missing = [f"the blob of {key}" for key in model if key not in state]
    _check_blobs(path, missing=missing, unknown=unknown, misshapen=misshapen)
    return {key: state[key].clone() for key in model}


def _of_mask_predictor(blobs: dict[str, np.ndarray]) -> dict[str, str]:
    """
    Blob -> parameter of the weight transfer function and the MLP branch. Detectron2's renaming would take
    one of them for a predictor with a row for the background, and would not recognise the others.
    """
    transfer = [*_numbered(blobs, "bbox2mask_mlp_l"), "mask_fcn_logits_w_flat"]
    mlp_branch = [*_numbered(blobs, "fc_mask_head_mlp_l"), "mask_mlp_logits_raw"]
    # In the transfer function, the activations between the layers count too.
    layers = {name: f"transfer.{2 * i}" for i, name in enumerate(transfer)}
    layers |= {name: f"mlp_branch.layers.{i}" for i, name in enumerate(mlp_branch)}
    kinds = {"w": "weight", "b": "bias"}
    keys = {f"{name}_{k}": f"{layer}.{kinds[k]}" for name, layer in layers.items() for k in kinds}
    return {name: key for name, key in keys.items() if name in blobs}


def _check_blobs(
    path: Path,
    *,
    missing: Iterable[str] = (),
    unknown: Iterable[str] = (),
    misshapen: Iterable[str] = (),
) -> None:
    parts = {"missing": sorted(missing), "unknown": sorted(unknown), "of another shape": sorted(misshapen)}
    said = [
        f"{what}: {', '.join(names[:_MOST_NAMED])}"
        + (f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else "")
        for what, names in parts.items()
        if names
    ]
    if said:
        raise InputError(f"checkpoint {path} does not have the blobs of seg_every_thing; {'; '.join(said)}")
