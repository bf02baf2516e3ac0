"""Progress bars instead of log lines, for interactive runs."""

from collections.abc import Iterable, Iterator

from detectron2.engine import HookBase

from maskx_d2.runtime.progress import progress_bar


class ProgressBar(HookBase):
    """A bar over the iterations, with the time left and the loss."""

    def __init__(self, title: str):
        self.title = title

    def before_train(self) -> None:
        trainer = self.trainer
        self.bar = progress_bar(trainer.max_iter, self.title, unit="it", initial=trainer.start_iter)

    def after_step(self) -> None:
        self.bar.update()
        if self.bar.n % 20 == 0:
            loss = self.trainer.storage.history("total_loss").median(20)
            self.bar.set_postfix(loss=f"{loss:.3f}", refresh=False)

    def after_train(self) -> None:
        self.bar.close()


class Watched:
    """A data loader with a bar over its batches."""

    def __init__(self, loader: Iterable, title: str):
        self.loader = loader
        self.title = title

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator:
        with progress_bar(len(self), self.title, unit="batch", leave=False) as bar:
            for batch in self.loader:
                yield batch
                bar.update()
