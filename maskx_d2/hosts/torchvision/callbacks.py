"""What a run of Lightning needs beside its own: repeatable steps, and ``metrics.json``."""

import json
import math
from argparse import Namespace
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from maskx_d2.evaluation.run_files import METRICS_FILE


class RepeatableSteps(Callback):
    """
    Makes the random numbers of a step, and of loading its images, a function of seed, step and rank.
    With it, and without worker processes, a run that was killed and resumed ends with the same weights
    as one that went through.
    """

    def __init__(self, seed: int):
        self.seed = seed

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._seed(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs, batch, batch_idx: int
    ) -> None:
        # Of several batches that make one step, each has numbers of its own.
        self._seed(trainer, part=(batch_idx + 1) % trainer.accumulate_grad_batches)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._seed(trainer)

    def _seed(self, trainer: Trainer, part: int = 0) -> None:
        number = trainer.global_step * trainer.accumulate_grad_batches + part
        number = number * trainer.world_size + trainer.global_rank
        torch.manual_seed((self.seed * 1_000_003 + number) % 2**31)


class MetricsFile(Logger):
    """Appends what is logged to ``metrics.json`` as Detectron2 does: a line of JSON, with its iteration."""

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
