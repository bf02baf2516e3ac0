"""``TrainingModule``: Mask^X R-CNN's losses, schedule and evaluation, for Lightning."""

import inspect
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from maskx_d2.backends.torchvision.backbone import BackboneOptions
from maskx_d2.backends.torchvision.checkpoint import (
    TRAINED_BY_TEACHER,
    TRAINED_WITH_MASKS,
    SavedModel,
    hyper_parameters,
    load_detector_weights,
)
from maskx_d2.backends.torchvision.detections import coco_results, detect
from maskx_d2.backends.torchvision.model import MaskXRCNN, maskx_rcnn_resnet_fpn, option_defaults
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
from maskx_d2.runtime.checkpoints import check_classes, check_state
from maskx_d2.runtime.once_per_node import all_gather

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
        saved = SavedModel.read(path)
        module = cls(**saved.options)
        module.load_state_dict(saved.state_dict)
        module.trained_with_masks = saved.trained_with_masks
        module.trained_by_teacher = saved.trained_by_teacher
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
        category_ids = self.trainer.datamodule.val_category_ids
        for image, detections, target in zip(images, detect(self.model, images), targets, strict=True):
            image_id = int(target["image_id"])
            self._results[image_id] = coco_results(
                detections, image_id, category_ids, size=tuple(image.shape[-2:])
            )

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


def training_defaults() -> dict[str, object]:
    """All options of :class:`TrainingModule`, including those of the model, with their defaults."""
    own = inspect.signature(TrainingModule).parameters.values()
    return {**{p.name: p.default for p in own if p.kind is not p.VAR_KEYWORD}, **option_defaults()}


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
