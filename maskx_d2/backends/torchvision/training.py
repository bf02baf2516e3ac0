"""``TrainingModule``: Mask^X R-CNN's losses, schedule and evaluation, for Lightning."""

import inspect
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from reprlib import repr as shown
from typing import Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from maskx_d2.backends.torchvision.backbone import BackboneOptions
from maskx_d2.backends.torchvision.detections import coco_results
from maskx_d2.backends.torchvision.model import MaskXRCNN, maskx_rcnn_resnet_fpn, option_defaults
from maskx_d2.data.class_names import coco_class_names
from maskx_d2.data.errors import InputError
from maskx_d2.data.files import write_text
from maskx_d2.data.pycocotools_coco import class_names, instance_counts
from maskx_d2.data.usable_objects import crowd_hint
from maskx_d2.evaluation.average_precision import DETECTIONS_PER_CLASS, class_precisions, crowding
from maskx_d2.evaluation.run_files import (
    DETECTIONS_FILE,
    EVALUATION_FOLDER,
    evaluation_of,
    write_evaluation,
)
from maskx_d2.evaluation.tables import group_table
from maskx_d2.runtime.checkpoints import (
    are_classes,
    check_classes,
    check_finite,
    check_state,
    read_checkpoint,
)
from maskx_d2.runtime.once_per_node import all_gather

TRAINED_WITH_MASKS, TRAINED_BY_TEACHER = "trained_with_masks", "trained_by_teacher"  # keys in a checkpoint
# Torchvision's names of losses -> Detectron2's, under which both backends log them.
_LOSS_NAMES = {
    "loss_classifier": "loss_cls",
    "loss_objectness": "loss_rpn_cls",
    "loss_rpn_box_reg": "loss_rpn_loc",
}


class TrainingModule(LightningModule):
    """
    Trains a model of :func:`maskx_rcnn_resnet_fpn`. Its checkpoints hold everything that is needed to use
    the model again: ``TrainingModule.from_checkpoint(path).model``.
    """

    def __init__(
        self,
        *,
        class_names: list[str],
        category_ids: list[int],
        classes_with_masks: list[int],
        detector: str | None = None,
        optimizer: Literal["SGD", "AdamW"] = "SGD",
        learning_rate: float = 0.02,
        weight_decay: float = 0.0001,
        warmup_steps: int = 1000,
        lr_schedule: Literal["multistep", "cosine"] = "multistep",
        milestones: Sequence[int] = (60000, 80000),
        **model,
    ):
        """
        Args:
            class_names: names of the K classes.
            category_ids: category id of each class.
            classes_with_masks: indices of the classes of A, in the split that evaluation reports on.
            detector: for stage-wise training, the checkpoint of the first stage, or a state dict of
                torchvision's Faster R-CNN. The detector is frozen, and only the mask branch is trained.
            optimizer: SGD (momentum 0.9) or AdamW.
            learning_rate: learning rate at the end of the warm-up.
            weight_decay: weight decay of all weights.
            warmup_steps: number of steps in which the learning rate rises from a thousandth.
            lr_schedule: multistep divides the learning rate by 10 at the milestones; cosine lets it fall to
                zero over the whole training.
            milestones: steps at which multistep divides the learning rate.
            model: see :func:`maskx_rcnn_resnet_fpn`; ``num_classes`` follows from ``class_names``.
        """
        super().__init__()
        self.save_hyperparameters()
        self.model = maskx_rcnn_resnet_fpn(num_classes=len(class_names) + 1, **model)
        backbone = BackboneOptions.of_model(model)
        if backbone.is_pretrained:
            self.hparams.update(backbone.without_weights())
        if detector is not None:
            if not isinstance(self.model, MaskXRCNN):
                raise InputError(
                    f"detector is {detector!r}, but predictor is None: there is nothing to train on it"
                )
            self.model.freeze_detector()
        self.trained_with_masks = list(classes_with_masks)
        """Indices of the classes whose masks it was trained with; saved in checkpoints."""
        self.trained_by_teacher: list[int] = []
        """Of the other classes, those that it was trained with masks by a teacher of; saved, too."""
        self._results: dict[int, list[dict]] = {}
        self._weights_are_saved = False

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> "TrainingModule":
        """
        Load the module that wrote a checkpoint, on the CPU. The file is read as data.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not a checkpoint of this class.
        """
        checkpoint = read_checkpoint(path)
        options = check_model(path, checkpoint)
        module = cls(**options)
        module.load_state_dict(checkpoint["state_dict"])
        for name in (TRAINED_WITH_MASKS, TRAINED_BY_TEACHER):
            indices = checkpoint.get(name, getattr(module, name))
            if not are_classes(module.hparams.class_names, module.hparams.category_ids, indices):
                raise InputError(
                    f"checkpoint {path} has {name} {shown(indices)}, expected indices of its "
                    f"{len(module.hparams.class_names)} classes"
                )
            setattr(module, name, list(indices))
        return module

    # ---- Training ----

    def setup(self, stage: str) -> None:
        data = self.trainer.datamodule
        learns_masks = stage == "fit" and isinstance(self.model, MaskXRCNN)
        learns_from_teacher = learns_masks and self.model.roi_heads.mask_teacher is not None
        num_teacher = data.num_teacher if learns_masks and data is not None else 0
        if num_teacher and not learns_from_teacher:
            logging.getLogger(__name__).warning(
                "%d masks by a teacher are not used, because model.teacher is null", num_teacher
            )
        has_teacher = learns_from_teacher and num_teacher > 0
        if learns_masks and data is not None and not data.has_masks and not has_teacher:
            raise InputError(
                f"no annotation of {data.train_json} has a mask that data.classes_with_masks "
                f"{data.split!r} keeps, expected at least one to learn masks from"
                f"{crowd_hint(data.num_crowds)}"
            )
        if learns_masks and data is not None:
            self.trained_with_masks = data.trained_with_masks
            self.trained_by_teacher = data.trained_by_teacher if learns_from_teacher else []
        resumes = self.trainer.ckpt_path is not None
        if stage == "fit" and self.hparams.detector is not None and not resumes:
            classes = list(self.hparams.class_names)
            load_detector_weights(self.model, self.hparams.detector, class_names=classes)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint[TRAINED_WITH_MASKS] = list(self.trained_with_masks)
        checkpoint[TRAINED_BY_TEACHER] = list(self.trained_by_teacher)

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        path = self.trainer.ckpt_path
        check_classes(
            path, list(hyper_parameters(path, checkpoint)["class_names"]), list(self.hparams.class_names)
        )
        check_state(f"checkpoint {path}", checkpoint["state_dict"], self.state_dict())

    def on_train_batch_start(self, batch, batch_idx: int) -> None:
        supervision = getattr(self.model.roi_heads, "mask_box_supervision", None)
        if supervision is not None:
            supervision.set_steps(self.global_step)

    def training_step(self, batch: tuple[list[Tensor], list[dict]], batch_index: int) -> Tensor:
        images, targets = batch
        losses = self.model(images, targets)
        total = sum(losses.values())
        if not torch.isfinite(total):
            values = {name: loss.item() for name, loss in losses.items()}
            raise FloatingPointError(f"the loss is not finite at step {self.global_step}: {values}")
        logged = {_LOSS_NAMES.get(name, name): loss.detach() for name, loss in losses.items()}
        learning_rate = self.optimizers().param_groups[0]["lr"]
        self.log_dict({"total_loss": total.detach(), **logged, "lr": learning_rate}, batch_size=len(images))
        return total

    def configure_optimizers(self) -> dict:
        options = self.hparams
        parameters = [p for p in self.parameters() if p.requires_grad]
        settings = {"lr": options.learning_rate, "weight_decay": options.weight_decay}
        if options.optimizer == "SGD":
            optimizer = torch.optim.SGD(parameters, momentum=0.9, **settings)
        else:
            optimizer = torch.optim.AdamW(parameters, **settings)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._learning_rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _learning_rate_factor(self, step: int) -> float:
        options = self.hparams
        warmup = min(1.0, 0.001 + 0.999 * step / max(options.warmup_steps, 1))
        if options.lr_schedule == "multistep":
            return warmup * 0.1 ** sum(step >= milestone for milestone in options.milestones)
        return warmup * 0.5 * (1 + math.cos(math.pi * step / self.trainer.estimated_stepping_batches))

    def on_train_batch_end(self, outputs, batch, batch_idx: int) -> None:
        # Before the evaluation, which may fail.
        if self.trainer.global_step >= self.trainer.estimated_stepping_batches:
            self.save_weights()

    def on_train_end(self) -> None:
        # For a run that was ended earlier, for example by --trainer.max_time.
        self.save_weights()

    def save_weights(self) -> None:
        """Write ``model_final.ckpt`` into the run's folder, once."""
        if self._weights_are_saved:
            return
        path = Path(self.trainer.default_root_dir) / "model_final.ckpt"
        self.trainer.save_checkpoint(path, weights_only=True)
        self._weights_are_saved = True

    # ---- Evaluation ----

    def on_validation_epoch_start(self) -> None:
        self._results = {}

    def validation_step(self, batch: tuple[list[Tensor], list[dict]], batch_index: int) -> None:
        images, targets = batch
        for detections, target in zip(self.model(images), targets, strict=True):
            image_id = int(target["image_id"])
            category_ids = self.trainer.datamodule.val_category_ids
            self._results[image_id] = coco_results(detections, image_id, category_ids)

    def on_validation_epoch_end(self) -> None:
        results = self._gather_results()
        if self.trainer.sanity_checking or not self.trainer.is_global_zero:
            return
        tasks = ["bbox"] + ["segm"] * isinstance(self.model, MaskXRCNN)
        data, with_masks = self.trainer.datamodule, self.hparams.classes_with_masks
        category_ids = sorted(data.val_category_ids)
        limit = max(self.model.roi_heads.detections_per_img, DETECTIONS_PER_CLASS)
        evaluation = evaluation_of(
            {task: class_precisions(data.val_coco, results, task, max_detections=limit) for task in tasks},
            annotations=Path(data.val_json),
            images=str(Path(data.val_images).resolve()),
            class_names=class_names(data.val_coco),
            category_ids=category_ids,
            with_masks=[category_ids.index(data.val_category_ids[i]) for i in with_masks],
            instance_counts=instance_counts(data.val_coco),
        )
        folder = Path(self.trainer.default_root_dir) / EVALUATION_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / DETECTIONS_FILE, json.dumps(results))
        write_evaluation(folder, evaluation)
        table = group_table(evaluation.by_group)
        log = logging.getLogger(__name__)
        if warning := crowding(data.val_coco, limit):
            log.warning("%s: raise model.box_detections_per_img", warning)
        log.info(
            "AP on %s, with at most %d detections of a class in an image\n\n%s", data.val_json, limit, table
        )
        logged = _logged_names(evaluation.by_group, two_sides=evaluation.has_two_sides)
        self.log_dict(logged, rank_zero_only=True)

    def _gather_results(self) -> list[dict]:
        """The results of all ranks, each image once: samplers may repeat images to make shares equal."""
        shares = [self._results]
        if self.trainer.world_size > 1:
            shares = all_gather(self._results)
        of_image = {image_id: found for share in shares for image_id, found in share.items()}
        return [result for image_id in sorted(of_image) for result in of_image[image_id]]


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
    known = training_defaults()
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
            expected = TrainingModule(**options).state_dict()
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


def training_defaults() -> dict[str, object]:
    """All options of :class:`TrainingModule`, including those of the model, with their defaults."""
    own = inspect.signature(TrainingModule).parameters.values()
    return {**{p.name: p.default for p in own if p.kind is not p.VAR_KEYWORD}, **option_defaults()}


def _is_plain(value) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):  # of box_supervision
        return all(isinstance(k, str) and isinstance(v, int | float) for k, v in value.items())
    return value is None or isinstance(value, bool | int | float | str | Tensor)


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
    state = {str(name).removeprefix("model."): value for name, value in state.items()}
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


def _logged_names(by_group: dict, *, two_sides: bool) -> dict[str, float]:
    """Detectron2's names: ``segm/AP``, and with two sides also ``segm_A/AP`` and ``segm_B/AP``."""
    names = {"all": "", "A": "_A", "B": "_B"} if two_sides else {"all": ""}
    return {
        f"{task}{names[group]}/{metric}": value
        for task, of_group in by_group.items()
        for group, values in of_group.items()
        if group in names
        for metric, value in values.items()
    }
