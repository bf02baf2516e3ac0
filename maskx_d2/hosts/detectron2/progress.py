"""A progress bar instead of log lines, for programs that people watch."""

import sys

from detectron2.engine import HookBase
from tqdm import tqdm


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
