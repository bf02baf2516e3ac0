"""Additions to Lightning: repeatable steps, checkpoints to resume from, progress bars, ``metrics.json``."""

import json
import math
import signal
import sys
from argparse import Namespace
from pathlib import Path

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from maskx_d2.evaluation.run_files import METRICS_FILE
from maskx_d2.runtime.checkpoints import write_checkpoint
from maskx_d2.runtime.exit_status import DeferredSignals
from maskx_d2.runtime.progress import progress_bar

_STEPS_BETWEEN_AGREEMENTS = 20


class RepeatableSteps(Callback):
    """
    Makes the random numbers of a step, and of loading its images, a function of seed, step and rank.
    With it, and without worker processes, a run that was killed and resumed ends with the same weights
    as an uninterrupted run.
    """

    def __init__(self, seed: int):
        self.seed = seed

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._seed(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs, batch, batch_idx: int
    ) -> None:
        # If several batches make one step, each has its own random numbers.
        self._seed(trainer, part=(batch_idx + 1) % trainer.accumulate_grad_batches)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._seed(trainer)

    def _seed(self, trainer: Trainer, part: int = 0) -> None:
        number = trainer.global_step * trainer.accumulate_grad_batches + part
        number = number * trainer.world_size + trainer.global_rank
        torch.manual_seed((self.seed * 1_000_003 + number) % 2**31)


def checkpoints_of_run(folder: Path) -> list[Path]:
    """The checkpoints that a run has left in its folder."""
    names = ("last.ckpt", "model_*.ckpt")
    return sorted(path for name in names for path in folder.glob(name))


class WholeFiles(TorchCheckpointIO):
    """
    Writes each checkpoint completely or not at all. (Lightning moves them from the folder for temporary
    files, which may be on another disk.)
    """

    def save_checkpoint(self, checkpoint: dict, path: str | Path, storage_options=None) -> None:
        write_checkpoint(Path(path), checkpoint)


class Checkpoints(Checkpoint):
    """
    Writes ``last.ckpt``, from which a run can be resumed, every few steps, after the last step, and when
    Ctrl-C or SIGTERM stops the run; a second signal stops it at once. A new run deletes the checkpoints and
    metrics of an earlier one.
    """

    def __init__(self, folder: Path, *, period: int):
        """
        Args:
            folder: folder of the run.
            period: number of steps between two checkpoints.
        """
        self.path = folder / "last.ckpt"
        self.period = period
        self._deferred = DeferredSignals()
        self._step = 0

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        self._deferred.obey()

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        # It has no steps to wait for.
        self._deferred.obey()

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._deferred.defer()

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        folder = self.path.parent
        old = [*folder.glob("*.ckpt.*.partial")]  # left by a killed run
        if self.path.is_symlink():  # made by earlier versions
            old.append(self.path)
        if trainer.ckpt_path is None:
            old += [*checkpoints_of_run(folder), folder / METRICS_FILE]
        for path in old:
            path.unlink(missing_ok=True)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        # Replaces Lightning's own handlers, which let a process exit while the others wait for it.
        self._deferred.defer()
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs, batch, batch_idx: int
    ) -> None:
        step, before, self._step = trainer.global_step, self._step, trainer.global_step
        if step == before:  # one of several batches that make one step
            return
        number, is_last = self._stopped_by(trainer), step >= trainer.estimated_stepping_batches
        if is_last:
            # First, because a run that is resumed after its last step does not write them again.
            module.save_weights()
        if number or is_last or step % self.period == 0:
            trainer.save_checkpoint(self.path)
        if number:
            self._leave(trainer, number)

    def _stopped_by(self, trainer: Trainer) -> int | None:
        """The signal received by any process; all processes agree on the step."""
        number = self._deferred.number
        if trainer.world_size == 1:
            return number
        is_last = trainer.global_step >= trainer.estimated_stepping_batches
        if trainer.global_step % _STEPS_BETWEEN_AGREEMENTS and not is_last:
            return None
        stopped = trainer.strategy.reduce_boolean_decision(number is not None, all=False)
        return (number or signal.SIGTERM) if stopped else None

    def _leave(self, trainer: Trainer, number: int) -> None:
        if trainer.is_global_zero:
            name = signal.Signals(number).name
            print(
                f"\nmaskx: stopped by {name} after step {trainer.global_step}: to resume, add --ckpt_path "
                f"{self.path} to the same command",
                file=sys.stderr,
            )
        sys.exit(128 + number)


class ProgressBar(Callback):
    """A bar over the steps, with the time left and the loss, and one over the images of an evaluation."""

    def __init__(self, title: str):
        self.title = title
        self.bar = self.bar_of_evaluation = None

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        steps = trainer.estimated_stepping_batches
        self.bar = progress_bar(steps, self.title, unit="it", initial=trainer.global_step)

    @rank_zero_only
    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args) -> None:
        self.bar.update(trainer.global_step - self.bar.n)
        if self.bar.n % 20 == 0:
            self.bar.set_postfix(loss=f"{trainer.callback_metrics['total_loss']:.3f}", refresh=False)
        if self.bar.n >= self.bar.total:  # the time of the evaluation is not the training's
            self.bar.close()

    @rank_zero_only
    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.bar.close()

    @rank_zero_only
    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        batches = sum(trainer.num_val_batches)
        self.bar_of_evaluation = progress_bar(batches, "evaluating", unit="batch", leave=False)

    @rank_zero_only
    def on_validation_batch_end(self, trainer: Trainer, module: LightningModule, *args) -> None:
        self.bar_of_evaluation.update()
        if self.bar_of_evaluation.n >= self.bar_of_evaluation.total:
            self.bar_of_evaluation.close()

    @rank_zero_only
    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        for bar in (self.bar, self.bar_of_evaluation):
            if bar is not None:
                bar.close()


class MetricsFile(Logger):
    """Appends logged values to ``metrics.json`` as Detectron2 does: a line of JSON with the iteration."""

    def __init__(self, folder: Path):
        super().__init__()
        self.path = folder / METRICS_FILE

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: dict | Namespace, *args, **kwargs) -> None:
        """They are in ``config.yaml``."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        kept = {name: value for name, value in metrics.items() if math.isfinite(value) and name != "epoch"}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"iteration": step, **kept}) + "\n")
