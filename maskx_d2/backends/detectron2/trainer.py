"""``Trainer``: Detectron2's trainer with this project's data loader, evaluator and optimisers."""

import inspect
import os
import signal
import sys
import weakref
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer, HookBase
from detectron2.engine.hooks import EvalHook, PeriodicCheckpointer
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.solver import build_optimizer
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventWriter, TensorboardXWriter
from torch.utils.data import DataLoader

from maskx_d2.backends.detectron2.checkpoint import (
    Checkpointer,
    ClassList,
    KnownClasses,
    check_before_loading,
    check_order_of_classes,
)
from maskx_d2.backends.detectron2.class_split import (
    ClassHasMask,
    category_ids,
    check_num_classes,
    class_names,
    evaluated_classes_with_masks,
    model_class_names,
)
from maskx_d2.backends.detectron2.data_loader import build_test_loader, build_train_loader
from maskx_d2.backends.detectron2.evaluator import PartiallySupervisedEvaluator, PredictionsForFirstRank
from maskx_d2.evaluation.average_precision import DETECTIONS_PER_CLASS
from maskx_d2.evaluation.run_files import EVALUATION_FOLDER
from maskx_d2.runtime.exit_status import DeferredSignals

_ITERATIONS_BETWEEN_AGREEMENTS = 20
TTA_FOLDER = f"{EVALUATION_FOLDER}_TTA"


class Trainer(DefaultTrainer):
    """
    Detectron2's ``DefaultTrainer`` for partially supervised training.

    With a ``SEED``, a run that was killed and resumed ends with the same weights as an uninterrupted run:
    the random numbers of an iteration depend only on seed and iteration, and the data loader starts where
    it would have been. (Exact with ``DATALOADER.NUM_WORKERS`` 0 on a deterministic device. Worker processes
    draw flips and scales from their own generators, and ``ASPECT_RATIO_GROUPING`` may hold back a few
    images across the interruption.)
    """

    def __init__(self, cfg: CfgNode):
        self._deferred_signals = DeferredSignals()
        super().__init__(scale_to(cfg, comm.get_world_size()))
        classes = ClassList(
            partial(class_names, cfg.DATASETS.TRAIN[0]),
            folder=cfg.OUTPUT_DIR,
            more=lambda: {
                "category_ids": category_ids(cfg.DATASETS.TRAIN[0]),
                "with_masks": self._trained_with_masks(),
                "by_teacher": self._trained_by_teacher(),
            },
        )
        self.checkpointer.add_checkpointable(ClassList.KEY, classes)

    def known_classes(self) -> KnownClasses:
        """The classes of the model, as recorded in its checkpoints."""
        return KnownClasses(**self.checkpointer.checkpointables[ClassList.KEY].state_dict())

    def _trained_with_masks(self) -> list[int]:
        training_data = getattr(self._trainer.data_loader, "training_data", None)
        if training_data is not None:
            return list(training_data.trained_with_masks)
        # Of the loader of a subclass only the split is known.
        return ClassHasMask(self.cfg.DATASETS.TRAIN[0], self.cfg.DATASETS.CLASSES_WITH_MASKS).indices()

    def _trained_by_teacher(self) -> list[int]:
        training_data = getattr(self._trainer.data_loader, "training_data", None)
        return [] if training_data is None else list(training_data.trained_by_teacher)

    def resume_or_load(self, resume: bool = True) -> None:
        path = check_before_loading(self.checkpointer, self.cfg.MODEL.WEIGHTS, resume=resume)
        check_order_of_classes(path, self.known_classes().names)
        super().resume_or_load(resume)
        if self.start_iter > 0:
            # The run's earlier checkpoints are the first to be deleted. Its folder has none of other runs.
            earlier = sorted(map(str, Path(self.cfg.OUTPUT_DIR).glob("model_[0-9]*.pth")))
            for hook in self._hooks:
                if isinstance(hook, PeriodicCheckpointer):
                    hook.recent_checkpoints = earlier
        # A loader of a subclass with Detectron2's own signature cannot skip the first iterations.
        takes_start = "start_iter" in inspect.signature(self.build_train_loader).parameters
        if self.start_iter > 0 and takes_start:
            self._trainer.reset_data_loader(
                lambda: self.build_train_loader(self.cfg, start_iter=self.start_iter)
            )
        if self.start_iter >= self.max_iter and not Path(self.cfg.OUTPUT_DIR, "model_final.pth").is_file():
            # It was killed between its last checkpoint and its final weights, which are the same.
            self.checkpointer.save("model_final", iteration=self.start_iter - 1)

    def build_hooks(self) -> list[HookBase]:
        seed = [_SeedIteration(self.cfg.SEED)] if self.cfg.SEED >= 0 else []
        first, last = _DeferSignals(self._deferred_signals), _StopOnSignal(self._deferred_signals)
        # Replaces Detectron2's checkpointer, made by DefaultTrainer, before the hooks are built with it.
        trainer = weakref.proxy(self)
        self.checkpointer = Checkpointer(self._trainer.model, self.cfg.OUTPUT_DIR, trainer=trainer)
        hooks = super().build_hooks()
        for hook in hooks:
            if isinstance(hook, PeriodicCheckpointer):
                hook.max_to_keep = self.cfg.SOLVER.CHECKPOINTS_TO_KEEP or None
        if self.cfg.TEST.AUG.ENABLED:
            # After the other evaluation and before the writers; 0 means after the last iteration.
            place = next(i for i, hook in enumerate(hooks) if isinstance(hook, EvalHook)) + 1
            hooks.insert(place, EvalHook(0, lambda: self.test_with_TTA(self.cfg, self.model)))
        return [first, *seed, *hooks, last]

    def build_writers(self) -> list[EventWriter]:
        """Detectron2's writers, without TensorBoard's if that is not installed."""
        has_tensorboard = find_spec("tensorboard") is not None
        return [
            w for w in super().build_writers() if has_tensorboard or not isinstance(w, TensorboardXWriter)
        ]

    @classmethod
    def build_train_loader(cls, cfg: CfgNode, *, start_iter: int = 0):
        """See :func:`build_train_loader`; a run that resumes passes ``start_iter``."""
        return build_train_loader(cfg, start_iter=start_iter)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        if cfg.SOLVER.MASKX_OPTIMIZER == "SGD":
            return build_optimizer(cfg, model)
        parameters = get_default_optimizer_params(
            model,
            base_lr=cfg.SOLVER.BASE_LR,
            weight_decay=cfg.SOLVER.WEIGHT_DECAY,
            weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
            bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
            weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
        )
        return maybe_add_gradient_clipping(cfg, torch.optim.AdamW)(parameters, cfg.SOLVER.BASE_LR)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        if MetadataCatalog.get(dataset_name).get("evaluator_type") != "coco":
            return super().build_evaluator(cfg, dataset_name)
        if not comm.is_main_process():
            return PredictionsForFirstRank()
        check_num_classes(cfg, dataset_name)
        # By default, Detectron2 takes the tasks from the detections, of which there may be none.
        tasks = ["bbox"] + ["segm"] * cfg.MODEL.MASK_ON + ["keypoints"] * cfg.MODEL.KEYPOINT_ON
        return PartiallySupervisedEvaluator(
            dataset_name,
            tasks=tuple(tasks),
            classes_with_masks=evaluated_classes_with_masks(cfg, dataset_name),
            model_classes=model_class_names(cfg),
            max_dets_per_image=detections_per_class(cfg),
            output_dir=output_folder or evaluation_folder(cfg, dataset_name),
        )

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: torch.nn.Module) -> dict:
        """
        Evaluate with test-time augmentation, see TEST.AUG, as in Detectron2's own train_net.

        Returns:
            The results of each task, under its name with the suffix ``_TTA``.
        """
        model = GeneralizedRCNNWithTTA(cfg, model)
        evaluators = [
            cls.build_evaluator(cfg, name, evaluation_folder(cfg, name, TTA_FOLDER))
            for name in cfg.DATASETS.TEST
        ]
        results = cls.test(cfg, model, evaluators)
        return {f"{task}_TTA": metrics for task, metrics in results.items()}


def evaluation_folder(cfg: CfgNode, dataset_name: str, name: str = EVALUATION_FOLDER) -> str:
    """Detectron2's folder for the first dataset, and a subfolder of it for each of the others."""
    folder = os.path.join(cfg.OUTPUT_DIR, name)
    return os.path.join(folder, dataset_name) if dataset_name in cfg.DATASETS.TEST[1:] else folder


def detections_per_class(cfg: CfgNode) -> int:
    """How many detections of a class in an image count in evaluation."""
    return max(cfg.TEST.DETECTIONS_PER_IMAGE, DETECTIONS_PER_CLASS)


def scale_to(cfg: CfgNode, num_workers: int) -> CfgNode:
    """
    ``DefaultTrainer.auto_scale_workers``, also for this project's keys.

    Args:
        cfg: a config with values for SOLVER.REFERENCE_WORLD_SIZE GPUs.
        num_workers: the actual number of GPUs.
    """
    reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference in (0, num_workers):
        return cfg
    cfg = cfg.clone()
    was_frozen = cfg.is_frozen()
    cfg.defrost()
    options = cfg.MODEL.ROI_MASK_HEAD.BOX_SUPERVISION
    for name in ("START", "WARMUP"):
        options[name] = round(options[name] * reference / num_workers)
    if was_frozen:
        cfg.freeze()
    return DefaultTrainer.auto_scale_workers(cfg, num_workers)


class _DeferSignals(HookBase):
    """Defers signals. The first hook, so that the evaluation after training can be stopped at once."""

    def __init__(self, deferred: DeferredSignals):
        self.deferred = deferred

    def before_train(self) -> None:
        self.deferred.defer()

    def after_train(self) -> None:
        self.deferred.obey()
        if self.deferred.number is not None and self.trainer.iter >= self.trainer.max_iter:
            # It came before the end of the last iteration, whose weights are saved.
            _leave(self.deferred.number)


class _StopOnSignal(HookBase):
    """
    Saves a checkpoint and ends the process after Ctrl-C or SIGTERM. The last hook, so that everything that
    belongs to the iteration is done.
    """

    def __init__(self, deferred: DeferredSignals):
        self.deferred = deferred

    def after_step(self) -> None:
        iteration = self.trainer.iter
        is_last = iteration + 1 >= self.trainer.max_iter
        number = self._number(is_last=is_last)
        if is_last:
            self.deferred.number = number
        if number is None or is_last:
            return
        self.trainer.checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
        if comm.is_main_process():
            name = signal.Signals(number).name
            print(
                f"\ntrain_net.py: stopped by {name} after iteration {iteration}: to continue, add --resume "
                "to the same command",
                file=sys.stderr,
            )
        _leave(number)

    def _number(self, *, is_last: bool) -> int | None:
        """Number of the signal received by any process; all processes agree on the iteration."""
        number = self.deferred.number
        if comm.get_world_size() == 1:
            return number
        if self.trainer.iter % _ITERATIONS_BETWEEN_AGREEMENTS and not is_last:
            return None
        return next((n for n in comm.all_gather(number) if n is not None), None)


def _leave(number: int) -> NoReturn:
    """End all processes together, because the first one that ends takes the others with it."""
    comm.synchronize()
    if comm.get_world_size() > 1:
        torch.distributed.destroy_process_group()
    sys.exit(128 + number)


class _SeedIteration(HookBase):
    """Makes the random numbers of an iteration a function of seed, iteration and rank."""

    def __init__(self, seed: int):
        self.seed = seed

    def before_step(self) -> None:
        number = self.trainer.iter * comm.get_world_size() + comm.get_rank()
        seed_all_rng((self.seed * 1_000_003 + number) % 2**31)
