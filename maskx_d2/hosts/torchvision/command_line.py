"""``maskx torchvision``: Lightning's command line for this host."""

import warnings
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from maskx_d2.hosts.torchvision.callbacks import MetricsFile, RepeatableSteps
from maskx_d2.hosts.torchvision.checkpoint import read_checkpoint
from maskx_d2.hosts.torchvision.data_module import CocoDataModule
from maskx_d2.hosts.torchvision.training import TrainingModule


class CommandLine(LightningCLI):
    """
    ``fit`` and ``validate`` with the options of :class:`TrainingModule` (``--model.``),
    :class:`CocoDataModule` (``--data.``) and Lightning's ``Trainer`` (``--trainer.``). A run leaves all
    its files in ``--trainer.default_root_dir``.
    """

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {
            name: skip for name, skip in LightningCLI.subcommands().items() if name in ("fit", "validate")
        }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--checkpoint_period", type=int, default=5000, help="steps between two checkpoints"
        )
        parser.link_arguments("seed_everything", "data.seed")
        for source, target in (
            ("class_names", "class_names"),
            ("category_ids", "category_ids"),
            ("evaluated_with_masks", "classes_with_masks"),
        ):
            parser.link_arguments(f"data.{source}", f"model.{target}", apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        checkpoint = self.config[self.subcommand].ckpt_path
        if self.subcommand == "validate":
            if checkpoint is None:
                raise ValueError("--ckpt_path is not given, expected the checkpoint to evaluate")
            # The config of the run stays that of its training.
            self.save_config_callback = None
            return
        to_resume = checkpoint is not None and Path(checkpoint).is_file()
        if to_resume and "optimizer_states" not in read_checkpoint(checkpoint):
            raise ValueError(
                f"--ckpt_path {checkpoint} holds weights alone, expected last.ckpt or a model_*.ckpt with "
                "the state of its training"
            )

    def instantiate_trainer(self, **kwargs) -> Trainer:
        config = self.config[self.subcommand]
        folder = Path(config.trainer.default_root_dir)
        if self.subcommand == "validate":
            return super().instantiate_trainer(logger=False, **kwargs)
        if config.trainer.logger is None:
            kwargs["logger"] = [TensorBoardLogger(folder, name="", version=""), MetricsFile(folder)]
        checkpoints = ModelCheckpoint(
            folder,
            filename="model_{step:07d}",
            auto_insert_metric_name=False,
            every_n_train_steps=config.checkpoint_period,
            save_last="link",
        )
        self.trainer_defaults["callbacks"] = [RepeatableSteps(config.seed_everything), checkpoints]
        return super().instantiate_trainer(**kwargs)


def main(arguments: list[str]) -> None:
    """
    Run ``fit`` or ``validate``.

    Raises:
        ValueError, FileNotFoundError: an option does not fit, or a file is not what it should be.
    """
    try:
        _run(arguments)
    except MisconfigurationException as error:
        raise ValueError(str(error)) from error


def _run(arguments: list[str]) -> None:
    # The data module goes on where the run was interrupted, which Lightning cannot see.
    warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before")
    # The frozen detector of stage-wise training is in eval mode on purpose.
    warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode")
    # sys.argv stays as it is, for the processes that Lightning starts by it.
    warnings.filterwarnings("ignore", "LightningCLI's args parameter is intended")
    CommandLine(
        TrainingModule,
        CocoDataModule,
        seed_everything_default=0,
        trainer_defaults={"default_root_dir": "output/torchvision", "num_sanity_val_steps": 0},
        save_config_kwargs={"overwrite": True},
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        parser_kwargs={"prog": "maskx torchvision"},
        args=arguments,
    )
