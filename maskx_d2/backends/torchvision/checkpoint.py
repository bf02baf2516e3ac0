"""Checkpoints of this backend, read as data: the model that was saved, and its classes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shown

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN, FasterRCNN_ResNet50_FPN_Weights

from maskx_d2.backends.torchvision.model import MaskXRCNN, maskx_rcnn_resnet_fpn, option_defaults
from maskx_d2.data.class_names import coco_class_names
from maskx_d2.data.errors import InputError
from maskx_d2.inference.mask_scores import ScoreCalibration
from maskx_d2.runtime.checkpoints import (
    are_classes,
    check_classes,
    check_finite,
    check_state,
    read_checkpoint,
)

TRAINED_WITH_MASKS, TRAINED_BY_TEACHER = "trained_with_masks", "trained_by_teacher"  # keys in a checkpoint
LIGHTNING_VERSION = "pytorch-lightning_version"  # the key
TRAINING_OPTIONS = (
    *("class_names", "category_ids", "classes_with_masks", "detector", "optimizer", "learning_rate"),
    *("weight_decay", "warmup_steps", "lr_schedule", "milestones"),
)
"""Options of :class:`TrainingModule` that are not options of its model."""

_OF_MODULE = "model."  # before the names of the model's weights


@dataclass(frozen=True)
class SavedModel:
    """What a checkpoint of :class:`TrainingModule` holds for inference."""

    options: dict
    """The options of the module, see :func:`hyper_parameters`."""

    state_dict: dict[str, Tensor]
    """The weights of the module."""

    trained_with_masks: list[int]
    """Indices of the classes whose masks it was trained with."""

    trained_by_teacher: list[int]
    """Of the other classes, those that it was trained with masks by a teacher of."""

    calibration: ScoreCalibration | None
    """Of its mask scores."""

    @classmethod
    def read(cls, path: str | Path) -> "SavedModel":
        """
        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not a checkpoint of this backend.
        """
        checkpoint = read_checkpoint(path)
        options = check_model(path, checkpoint)
        with_masks = checkpoint.get(TRAINED_WITH_MASKS, options["classes_with_masks"])
        by_teacher = checkpoint.get(TRAINED_BY_TEACHER, [])
        for name, indices in ((TRAINED_WITH_MASKS, with_masks), (TRAINED_BY_TEACHER, by_teacher)):
            if not are_classes(options["class_names"], options["category_ids"], indices):
                raise InputError(
                    f"checkpoint {path} has {name} {shown(indices)}, expected indices of its "
                    f"{len(options['class_names'])} classes"
                )
        return cls(
            options=options,
            state_dict=checkpoint["state_dict"],
            trained_with_masks=list(with_masks),
            trained_by_teacher=list(by_teacher),
            calibration=ScoreCalibration.of_checkpoint(checkpoint),
        )

    def build(self) -> FasterRCNN:
        """The model with its weights, on the CPU."""
        model = build_model(self.options)
        model.load_state_dict(
            {name.removeprefix(_OF_MODULE): value for name, value in self.state_dict.items()}
        )
        return model


def build_model(options: Mapping, **changes) -> FasterRCNN:
    """
    Build the model that the options of a :class:`TrainingModule` describe, without its weights.

    Args:
        options: see :func:`hyper_parameters`.
        changes: options of :func:`maskx_rcnn_resnet_fpn` that differ.
    """
    return maskx_rcnn_resnet_fpn(
        num_classes=len(options["class_names"]) + 1, **{**model_options(options), **changes}
    )


def model_options(options: Mapping) -> dict:
    """The options of :func:`maskx_rcnn_resnet_fpn` among those of a :class:`TrainingModule`."""
    return {name: value for name, value in options.items() if name not in TRAINING_OPTIONS}


def hyper_parameters(path: str | Path, checkpoint: dict) -> dict:
    """
    The options that a checkpoint's :class:`TrainingModule` was built with. A model will be built from them,
    so they must be what the class saves and nothing else.

    Args:
        path: path of the checkpoint, for error messages.
        checkpoint: content of the checkpoint.

    Raises:
        ValueError: the checkpoint has no options, or any that are unknown or not plain values.
    """
    for part in ("hyper_parameters", "state_dict"):
        if not isinstance(checkpoint.get(part), dict):
            raise InputError(f"checkpoint {path} has no {part!r}, expected one written by this backend")
    known = {*TRAINING_OPTIONS, *option_defaults()}
    options = {}
    for name, value in checkpoint["hyper_parameters"].items():
        if name in known and _is_plain(value):
            options[name] = value
        elif value is not None and name != "_instantiator":  # earlier versions wrote None for modules
            raise InputError(
                f"checkpoint {path} is of another model, expected one written by this backend: it has "
                f"the option {name!r} of {shown(value)}"
            )
    classes = [options.get(name) for name in ("class_names", "category_ids", "classes_with_masks")]
    if not are_classes(*classes):
        raise InputError(f"checkpoint {path} does not say which classes it knows, expected names and ids")
    for name in ("weights_backbone", "backbone_weights"):
        if options.get(name) is not None:
            raise InputError(
                f"checkpoint {path} has {name} {options[name]!r}, expected none: a checkpoint has its "
                "weights"
            )
    return options


def check_model(path: str | Path, checkpoint: dict) -> dict:
    """
    Compare the weights of a checkpoint with the model that its options describe. That model is built
    without memory for weights of its own.

    Args:
        path: path of the checkpoint, for error messages.
        checkpoint: content of the checkpoint.

    Returns:
        The options, see :func:`hyper_parameters`.

    Raises:
        ValueError: there is no such model, or the weights do not fit it or are not finite.
    """
    options = hyper_parameters(path, checkpoint)
    found = checkpoint["state_dict"]
    try:
        with torch.device("meta"):
            expected = build_model(options).state_dict()
        expected = {f"{_OF_MODULE}{name}": value for name, value in expected.items()}
        check_state("it", found, expected)
        if more := found.keys() - expected.keys():
            raise InputError(f"it has {len(more)} extra parameters, {shown(min(more, key=str))} among them")
    except Exception as error:  # anything torchvision raises for unchecked options
        reason = str(error).split("\n", 1)[0][:300]
        raise InputError(
            f"checkpoint {path} is of another model, expected one written by this backend: {reason}"
        ) from error
    check_finite(path, found)
    return options


def load_detector_weights(model: MaskXRCNN, path: str, *, class_names: list[str] | None = None) -> None:
    """
    Load all parameters except those of the mask branch.

    Args:
        model: the model to load into.
        path: a checkpoint of :class:`TrainingModule`, or a state dict of torchvision's Faster R-CNN.
        class_names: class names of the model, if the checkpoint must have the same ones. For COCO's,
            torchvision's own COCO weights fit too.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read as data, has other classes, or does not hold all parameters of the
            detector with their shapes.
    """
    checkpoint = read_checkpoint(path)
    if class_names is not None and "hyper_parameters" in checkpoint:
        check_classes(path, list(hyper_parameters(path, checkpoint)["class_names"]), class_names)
    state = checkpoint.get("state_dict", checkpoint)
    if not isinstance(state, dict):
        raise InputError(f"detector {path} has no parameters, expected those of a detector")
    state = {str(name).removeprefix(_OF_MODULE): value for name, value in state.items()}
    if class_names == coco_class_names():
        state = _without_unused_rows(state)
    expected = {n: v for n, v in model.state_dict().items() if not n.startswith("roi_heads.mask_")}
    check_state(f"detector {path}", state, expected)
    check_finite(path, {name: state[name] for name in expected})
    model.load_state_dict({name: state[name] for name in expected}, strict=False)


def _without_unused_rows(state: dict[str, object]) -> dict[str, object]:
    """The weights of torchvision's own COCO models without the category ids that COCO never used."""
    names = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    used = [row for row, name in enumerate(names) if name != "N/A"]
    state = dict(state)
    for name in ("cls_score.weight", "cls_score.bias", "bbox_pred.weight", "bbox_pred.bias"):
        key, rows_of_class = f"roi_heads.box_predictor.{name}", 4 if "bbox" in name else 1
        value = state.get(key)
        if isinstance(value, Tensor) and len(value) == rows_of_class * len(names):
            state[key] = value.unflatten(0, (len(names), rows_of_class))[used].flatten(0, 1)
    return state


def _is_plain(value) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):  # of box_supervision
        return all(isinstance(k, str) and isinstance(v, int | float) for k, v in value.items())
    return value is None or isinstance(value, bool | int | float | str | Tensor)
