"""``TrainingModule``: Mask^X R-CNN's losses, schedule and evaluation, for Lightning."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from maskx_d2.data.coco_json import instance_counts
from maskx_d2.data.files import write_text
from maskx_d2.evaluation.average_precision import evaluate_coco
from maskx_d2.evaluation.run_files import (
    DETECTIONS_FILE,
    EVALUATION_FOLDER,
    evaluation_of,
    write_evaluation,
)
from maskx_d2.evaluation.tables import group_table
from maskx_d2.hosts.torchvision.checkpoint import read_checkpoint
from maskx_d2.hosts.torchvision.detections import coco_results
from maskx_d2.hosts.torchvision.model import MaskXRCNN, maskx_rcnn_resnet_fpn

# Where torchvision's names of the losses are not those of Detectron2, under which both hosts log them.
_LOSS_NAMES = {
    "loss_classifier": "loss_cls",
    "loss_objectness": "loss_rpn_cls",
    "loss_rpn_box_reg": "loss_rpn_loc",
}


class TrainingModule(LightningModule):
    """
    A model of :func:`maskx_rcnn_resnet_fpn` in training. Its checkpoints hold all that is needed to use
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
            classes_with_masks: indices of the classes of A.
            detector: for stage-wise training, the checkpoint of the first stage, or a state dict of
                torchvision's Faster R-CNN: its detector is frozen, and only the mask branch is trained.
            optimizer: SGD (momentum 0.9) or AdamW.
            learning_rate: at the end of the warm-up.
            weight_decay: of all weights.
            warmup_steps: steps in which the learning rate rises from a thousandth.
            lr_schedule: multistep divides it by 10 at the milestones; cosine lets it fall to zero over the
                whole training.
            milestones: steps at which multistep divides it.
            model: see :func:`maskx_rcnn_resnet_fpn`; ``num_classes`` is that of ``class_names``.
        """
        super().__init__()
        self.save_hyperparameters()
        self.model = maskx_rcnn_resnet_fpn(num_classes=len(class_names) + 1, **model)
        if model.get("weights_backbone") is not None:
            # They will be in the checkpoint, which shall not need them again.
            layers = model.get("trainable_backbone_layers")
            self.hparams.update(
                weights_backbone=None,
                norm=model.get("norm") or "FrozenBN",
                trainable_backbone_layers=3 if layers is None else layers,
            )
        if detector is not None:
            if not isinstance(self.model, MaskXRCNN):
                raise ValueError(
                    f"detector is {detector!r}, but predictor is None: there is nothing to train on it"
                )
            self.model.freeze_detector()
        self._results: dict[int, list[dict]] = {}

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> "TrainingModule":
        """
        The module that wrote a checkpoint, on the CPU. The file is read as data.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no checkpoint of this class.
        """
        checkpoint = read_checkpoint(path)
        expected = "expected one that this host has written"
        missing = [key for key in ("hyper_parameters", "state_dict") if key not in checkpoint]
        if missing:
            raise ValueError(f"checkpoint {path} has no {missing[0]!r}, {expected}")
        try:
            module = cls(**checkpoint["hyper_parameters"])
            module.load_state_dict(checkpoint["state_dict"])
        except (TypeError, RuntimeError) as error:
            raise ValueError(f"checkpoint {path} is of another model, {expected}") from error
        return module

    # ---- Training ----

    def setup(self, stage: str) -> None:
        resumes = self.trainer.ckpt_path is not None
        if stage == "fit" and self.hparams.detector is not None and not resumes:
            load_detector(self.model, self.hparams.detector)

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

    def on_train_end(self) -> None:
        path = Path(self.trainer.default_root_dir) / "model_final.ckpt"
        self.trainer.save_checkpoint(path, weights_only=True)

    # ---- Evaluation ----

    def on_validation_epoch_start(self) -> None:
        self._results = {}

    def validation_step(self, batch: tuple[list[Tensor], list[dict]], batch_index: int) -> None:
        images, targets = batch
        for detections, target in zip(self.model(images), targets, strict=True):
            image_id = int(target["image_id"])
            self._results[image_id] = coco_results(detections, image_id, self.hparams.category_ids)

    def on_validation_epoch_end(self) -> None:
        results = self._gather_results()
        if self.trainer.sanity_checking or not self.trainer.is_global_zero:
            return
        tasks = ["bbox"] + ["segm"] * isinstance(self.model, MaskXRCNN)
        data, classes = self.trainer.datamodule, self.hparams
        evaluation = evaluation_of(
            {task: evaluate_coco(data.val_coco, results, task).eval["precision"] for task in tasks},
            annotations=Path(data.val_json),
            images=str(Path(data.val_images).resolve()),
            class_names=classes.class_names,
            category_ids=classes.category_ids,
            with_masks=classes.classes_with_masks,
            instance_counts=instance_counts(data.val_coco),
        )
        folder = Path(self.trainer.default_root_dir) / EVALUATION_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / DETECTIONS_FILE, json.dumps(results))
        write_evaluation(folder, evaluation)
        table = group_table(evaluation.by_group)
        self.print(f"AP on A (classes with masks), on B (boxes only) and on all:\n{table}")
        logged = _logged_names(evaluation.by_group, two_sides=evaluation.has_two_sides)
        self.log_dict(logged, rank_zero_only=True)

    def _gather_results(self) -> list[dict]:
        """Of all ranks, each image once: a sampler may give one to two ranks to make their shares equal."""
        shares: list[dict | None] = [self._results]
        if self.trainer.world_size > 1:
            shares = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(shares, self._results)
        of_image = {image_id: found for share in shares for image_id, found in share.items()}
        return [result for image_id in sorted(of_image) for result in of_image[image_id]]


def load_detector(model: MaskXRCNN, path: str) -> None:
    """
    Load all parameters but those of the mask branch.

    Args:
        model: the model to load into.
        path: a checkpoint of :class:`TrainingModule`, or a state dict of torchvision's Faster R-CNN.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read as data, or does not hold all parameters of the detector with their
            shapes.
    """
    checkpoint = read_checkpoint(path)
    state = {
        name.removeprefix("model."): value
        for name, value in checkpoint.get("state_dict", checkpoint).items()
    }
    expected = {n: v for n, v in model.state_dict().items() if not n.startswith("roi_heads.mask_")}
    for name, value in expected.items():
        found = tuple(state[name].shape) if name in state else "nothing"
        if found != tuple(value.shape):
            raise ValueError(f"detector {path} has {found} for {name}, expected {tuple(value.shape)}")
    model.load_state_dict({name: state[name] for name in expected}, strict=False)


def _logged_names(by_group: dict, *, two_sides: bool) -> dict[str, float]:
    """Detectron2's names: ``segm/AP``, and where there are two sides ``segm_A/AP`` and ``segm_B/AP``."""
    names = {"all": "", "A": "_A", "B": "_B"} if two_sides else {"all": ""}
    return {
        f"{task}{names[group]}/{metric}": value
        for task, of_group in by_group.items()
        for group, values in of_group.items()
        if group in names
        for metric, value in values.items()
    }
