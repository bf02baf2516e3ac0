"""``maskx torchvision``: Lightning's command line for this backend."""

import contextlib
import warnings
from pathlib import Path

from jsonargparse import Namespace, set_parsing_settings
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from maskx_d2.backends.torchvision import data_module, training
from maskx_d2.backends.torchvision.callbacks import (
    Checkpoints,
    MetricsFile,
    ProgressBar,
    RepeatableSteps,
    WholeFiles,
    checkpoints_of_run,
)
from maskx_d2.backends.torchvision.checkpoint import LIGHTNING_VERSION, check_model
from maskx_d2.backends.torchvision.data_module import CocoDataModule
from maskx_d2.backends.torchvision.model import option_defaults
from maskx_d2.backends.torchvision.training import TrainingModule, training_defaults
from maskx_d2.data.errors import InputError
from maskx_d2.data.files import real_path
from maskx_d2.evaluation.run_files import EVALUATION_FILES, RUN_FILES, contents, log_file
from maskx_d2.runtime.checkpoints import read_checkpoint
from maskx_d2.runtime.configs import check_yaml
from maskx_d2.runtime.logs import log_to_file
from maskx_d2.runtime.outputs import OutputFolder, named_files, writing

# Options whose result is in the checkpoint itself.
_MAY_DIFFER = ("detector", "weights_backbone", "backbone_weights", "norm", "trainable_backbone_layers")


class CommandLine(LightningCLI):
    """
    ``fit`` and ``validate`` with the options of :class:`TrainingModule` (``--model.``),
    :class:`CocoDataModule` (``--data.``) and Lightning's ``Trainer`` (``--trainer.``). A run writes all
    its files to ``--trainer.default_root_dir``.
    """

    def __init__(self, *args, **kwargs):
        with contextlib.ExitStack() as self._held:
            super().__init__(*args, **kwargs)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {
            name: skip for name, skip in LightningCLI.subcommands().items() if name in ("fit", "validate")
        }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--checkpoint_period", type=int, default=5000, help="steps between two checkpoints"
        )
        parser.add_argument(
            "--overwrite", type=bool, default=False, help="whether to replace an earlier run in the folder"
        )
        parser.set_defaults({f"model.{name}": value for name, value in option_defaults().items()})
        parser.link_arguments("seed_everything", "data.seed")
        for source, target in (
            ("class_names", "class_names"),
            ("category_ids", "category_ids"),
            ("evaluated_with_masks", "classes_with_masks"),
        ):
            parser.link_arguments(f"data.{source}", f"model.{target}", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: list[str]) -> None:
        super().parse_arguments(parser, args)
        config = self.config[self.config.subcommand]
        folder = Path(config.trainer.default_root_dir)
        if rank_zero_only.rank == 0:
            self._held.enter_context(self._writing(folder, args, resumes=config.ckpt_path is not None))
        if self.config.subcommand == "fit" and not config.overwrite:
            _check_folder(folder, config.ckpt_path)
        self._check_checkpoint(config)
        self._log_to_file(folder)

    def _writing(
        self, folder: Path, args: list[str], *, resumes: bool
    ) -> contextlib.AbstractContextManager[None]:
        """Lock the folder for the duration of the run."""
        inputs = named_files([word.rpartition("=")[2] for word in args])
        if resumes:  # the run's own files may be inputs and outputs
            inputs = [path for path in inputs if not real_path(path).is_relative_to(real_path(folder))]
        names = RUN_FILES if self.config.subcommand == "fit" else EVALUATION_FILES
        return writing([OutputFolder(folder, names)], inputs)

    def _log_to_file(self, folder: Path) -> None:
        """Log to a file from now on, except messages that are also meant for the screen."""
        rank, shown = rank_zero_only.rank, [data_module.__name__, training.__name__]
        log = log_to_file(log_file(folder, rank=rank), on_screen=[] if rank else shown)
        self._held.enter_context(log)

    def _check_checkpoint(self, config: Namespace) -> None:
        if config.ckpt_path is None:
            if self.config.subcommand == "validate":
                raise InputError("--ckpt_path is not given, expected the checkpoint to evaluate")
            return
        config.weights_only = True
        # Before Lightning builds a model from its content.
        checkpoint = read_checkpoint(config.ckpt_path)
        if LIGHTNING_VERSION not in checkpoint:
            raise InputError(f"--ckpt_path {config.ckpt_path} was not written by this backend")
        if self.config.subcommand == "fit" and "optimizer_states" not in checkpoint:
            raise InputError(
                f"--ckpt_path {config.ckpt_path} holds only weights, expected last.ckpt, which has the "
                "state of the training"
            )
        _check_not_overruled(config.model.as_dict(), check_model(config.ckpt_path, checkpoint))

    def before_instantiate_classes(self) -> None:
        if self.subcommand == "validate":
            # Keep the config of the training.
            self.save_config_callback = None

    def instantiate_trainer(self, **kwargs) -> Trainer:
        config = self.config[self.subcommand]
        folder = Path(config.trainer.default_root_dir)
        bar = ProgressBar("training")
        if self.subcommand == "validate":
            self.trainer_defaults["callbacks"] = [bar]
            return super().instantiate_trainer(logger=False, **kwargs)
        if config.trainer.logger is None:
            kwargs["logger"] = [TensorBoardLogger(folder, name="", version=""), MetricsFile(folder)]
        if config.trainer.plugins is None:
            kwargs["plugins"] = [WholeFiles()]
        checkpoints = Checkpoints(folder, period=config.checkpoint_period)
        self.trainer_defaults["callbacks"] = [RepeatableSteps(config.seed_everything), bar, checkpoints]
        return super().instantiate_trainer(**kwargs)


def _check_not_overruled(options: dict, of_checkpoint: dict) -> None:
    """A run is resumed, and a model is evaluated, with the options that the checkpoint was made with."""
    defaults = training_defaults()
    for name, value in options.items():
        if name in _MAY_DIFFER or name not in of_checkpoint or name not in defaults:
            continue
        given, kept = _plain(value), _plain(of_checkpoint[name])
        if given not in (kept, _plain(defaults[name])):
            raise InputError(
                f"--model.{name} is {given!r}, but the checkpoint was made with {kept!r}: leave it out, or "
                "start a new run"
            )


def _plain(value):
    """Turn tuples into lists, so that the two compare equal."""
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _check_folder(folder: Path, checkpoint: str | None) -> None:
    """A folder belongs to one run. Files of different runs must not be mixed."""
    earlier = checkpoints_of_run(folder)
    if not earlier or (checkpoint is not None and real_path(checkpoint).parent == real_path(folder)):
        return
    raise InputError(
        f"{folder} holds {earlier[0].name} of an earlier run: continue it with --ckpt_path "
        f"{folder / 'last.ckpt'}, give another --trainer.default_root_dir, or use --overwrite=true"
    )


def main(arguments: list[str]) -> None:
    """
    Run ``fit`` or ``validate``.

    Raises:
        ValueError, FileNotFoundError: an option or a file is invalid, or a file does not exist.
    """
    for word in arguments:
        path = Path(word.rpartition("=")[2])
        if path.suffix in (".yaml", ".yml", ".json") and path.is_file():
            check_yaml(path)
    try:
        _run(arguments)
    except MisconfigurationException as error:
        raise InputError(str(error)) from error


def _run(arguments: list[str]) -> None:
    # The data module continues where the run was interrupted, which Lightning cannot see.
    warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before")
    # The frozen detector of stage-wise training is in eval mode on purpose.
    warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode")
    # sys.argv is left as it is, because Lightning starts other processes from it.
    warnings.filterwarnings("ignore", "LightningCLI's args parameter is intended")
    # Only the first process evaluates the detections of all.
    warnings.filterwarnings("ignore", "It is recommended to use .*sync_dist=True")
    # Internal to Lightning.
    warnings.filterwarnings("ignore", r".*LeafSpec.* is deprecated")
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
    # If an option can be anything, do not instantiate a class that it names.
    set_parsing_settings(instantiate_subclass_spec_in_any=False)
    command_line = CommandLine(
        TrainingModule,
        CocoDataModule,
        seed_everything_default=0,
        trainer_defaults={
            "default_root_dir": "output/torchvision",
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
        save_config_kwargs={"overwrite": True},
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        parser_kwargs={"prog": "maskx torchvision"},
        args=arguments,
    )
    if rank_zero_only.rank == 0:
        print(f"\n{contents(Path(command_line.trainer.default_root_dir))}")
