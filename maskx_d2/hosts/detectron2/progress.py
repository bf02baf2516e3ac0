"""Progress bars instead of log lines, for programs that people watch."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from detectron2.engine import HookBase
from tqdm import tqdm

_LOGGERS = ("detectron2", "fvcore", "maskx_d2", "py.warnings", "torch")


class ProgressBar(HookBase):
    """A bar over the iterations, with the time left and the loss."""

    def __init__(self, title: str):
        self.title = title

    def before_train(self) -> None:
        trainer = self.trainer
        self.bar = tqdm(
            total=trainer.max_iter,
            initial=trainer.start_iter,
            desc=self.title,
            unit="it",
            file=sys.stderr,
        )

    def after_step(self) -> None:
        self.bar.update()
        if self.bar.n % 20 == 0:
            loss = self.trainer.storage.history("total_loss").median(20)
            self.bar.set_postfix(loss=f"{loss:.3f}")

    def after_train(self) -> None:
        self.bar.close()


@contextlib.contextmanager
def log_to_file(path: Path) -> Iterator[None]:
    """Send what Detectron2 logs and what COCOeval prints to a file instead of the screen."""
    path.parent.mkdir(parents=True, exist_ok=True)
    logging.captureWarnings(True)
    with path.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        handler = logging.StreamHandler(file)
        handler.setFormatter(logging.Formatter("[%(asctime)s %(name)s] %(levelname)s: %(message)s"))
        before = {}
        for name in _LOGGERS:
            logger = logging.getLogger(name)
            before[logger] = (logger.handlers, logger.propagate, logger.level)
            logger.handlers, logger.propagate = [handler], False
            logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            logging.captureWarnings(False)
            for logger, (handlers, propagate, level) in before.items():
                logger.handlers, logger.propagate = handlers, propagate
                logger.setLevel(level)
