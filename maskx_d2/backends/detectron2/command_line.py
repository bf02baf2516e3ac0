"""Detectron2's usual training command line."""

import argparse
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import HookBase, default_argument_parser, default_setup, launch
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

from maskx_d2.backends.detectron2 import data_loader, evaluator
from maskx_d2.backends.detectron2.checkpoint import (
    Checkpointer,
    check_before_loading,
    recorded_names,
)
from maskx_d2.backends.detectron2.class_split import (
    check_num_classes,
    class_names,
    load_dataset,
    model_class_names,
)
from maskx_d2.backends.detectron2.config import check_maskx_config, load_config
from maskx_d2.backends.detectron2.datasets import register_datasets
from maskx_d2.backends.detectron2.once_per_node import once_per_node
from maskx_d2.backends.detectron2.progress import ProgressBar, Watched
from maskx_d2.backends.detectron2.trainer import (
    TTA_FOLDER,
    Trainer,
    detections_per_class,
    evaluation_folder,
    scale_to,
)
from maskx_d2.data.class_names import match_classes
from maskx_d2.data.errors import InputError
from maskx_d2.data.files import real_path, write_text
from maskx_d2.data.images import check_images_exist
from maskx_d2.evaluation.run_files import (
    EVALUATION_FILES,
    METRICS_FILE,
    RUN_FILES,
    contents,
    log_file,
    read_table,
)
from maskx_d2.runtime.configs import read_yaml, with_new_keys
from maskx_d2.runtime.exit_status import one_sentence
from maskx_d2.runtime.logs import log_to_file
from maskx_d2.runtime.outputs import OutputFolder, named_files, writing

_SCALED_KEYS = (
    *("SOLVER.IMS_PER_BATCH", "SOLVER.BASE_LR", "SOLVER.MAX_ITER", "SOLVER.WARMUP_ITERS", "SOLVER.STEPS"),
    *("SOLVER.CHECKPOINT_PERIOD", "TEST.EVAL_PERIOD"),
    *("MODEL.ROI_MASK_HEAD.BOX_SUPERVISION.START", "MODEL.ROI_MASK_HEAD.BOX_SUPERVISION.WARMUP"),
)


def read_config(config_file: str, overrides: list | None = None, *, with_datasets: bool = True) -> CfgNode:
    """
    Read a config, and fall back to the CPU where there is no GPU.

    Args:
        config_file, overrides: see :func:`load_config`.
        with_datasets: whether to register the datasets of DATASETS.MASKX_REGISTER, whose files must exist.
    """
    cfg = load_config(config_file, overrides)
    if with_datasets:
        register_datasets(cfg)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logging.getLogger(__name__).warning(
            "MODEL.DEVICE is %r, but torch finds no GPU: running on the CPU", cfg.MODEL.DEVICE
        )
        cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    return cfg


def train_or_evaluate(args: argparse.Namespace) -> dict | None:
    """Runs in each process: train and evaluate, or only evaluate with ``--eval-only``."""
    cfg = _config_of_run(args.config_file, args.opts or [])
    with contextlib.ExitStack() as held:
        once_per_node(partial(_hold_folder, cfg, args, held), datasets=[])
        return _train_or_evaluate(cfg, args)


def _config_of_run(config_file: str, overrides: list) -> CfgNode:
    """
    Values in a config file are for SOLVER.REFERENCE_WORLD_SIZE GPUs, and are scaled for other numbers of
    GPUs. Values on the command line are for the actual number of GPUs.
    """
    pairs = list(zip(overrides[::2], overrides[1::2], strict=False))
    given = [pair for pair in pairs if pair[0] in _SCALED_KEYS]
    if not given or len(overrides) % 2 or "SOLVER.REFERENCE_WORLD_SIZE" in overrides[::2]:
        return read_config(config_file, overrides)
    cfg = read_config(config_file, [word for pair in pairs if pair not in given for word in pair])
    cfg = scale_to(cfg, comm.get_world_size()).clone()
    cfg.defrost()
    cfg.merge_from_list([word for pair in given for word in pair])
    check_maskx_config(cfg)
    cfg.freeze()
    return cfg


def _train_or_evaluate(cfg: CfgNode, args: argparse.Namespace) -> dict | None:
    folder = Path(cfg.OUTPUT_DIR)
    if not args.eval_only:
        _check_folder(cfg, resume=args.resume, overwrite=getattr(args, "overwrite", False))
        once_per_node(partial(check_evaluation, cfg), datasets=cfg.DATASETS.TEST)
        _clear_folder(folder, resume=args.resume)
    without_folder = cfg.clone()
    without_folder.defrost()
    without_folder.OUTPUT_DIR = None  # otherwise it would write there, through links
    with log_to_file(Path(os.devnull)):
        default_setup(without_folder, args)
    is_main = comm.is_main_process()
    if is_main:
        _write_config(cfg, args)
    log = log_file(folder, rank=comm.get_rank())
    work = _evaluate if args.eval_only else _train
    shown = [data_loader.__name__, evaluator.__name__]
    try:
        with log_to_file(log, on_screen=shown if is_main else []):
            results = work(cfg, args)
    except SystemExit as stopped:
        if stopped.code == 1:  # from verify_results(), which has logged the reason
            raise InputError(f"results differ from TEST.EXPECTED_RESULTS: {log} shows both") from stopped
        raise
    if is_main:
        print(_report(cfg))
    return results


def _hold_folder(cfg: CfgNode, args: argparse.Namespace, held: contextlib.ExitStack) -> None:
    """Lock the folder in the main process for the duration of the run."""
    if comm.is_main_process():
        folder = Path(cfg.OUTPUT_DIR)
        inputs = [Path(args.config_file), *named_files(cfg)]
        if args.resume:  # the run's own files may be inputs and outputs
            inputs = [path for path in inputs if not real_path(path).is_relative_to(real_path(folder))]
        names = EVALUATION_FILES if args.eval_only else RUN_FILES
        held.enter_context(writing([OutputFolder(folder, names)], inputs))


def _write_config(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Write the config, unless it is the run's own or an evaluation would replace that of the training."""
    path = Path(cfg.OUTPUT_DIR, "config.yaml")
    is_own = path.exists() and path.samefile(args.config_file)
    if not is_own and not (args.eval_only and path.exists()):
        write_text(path, cfg.dump())


def _train(cfg: CfgNode, args: argparse.Namespace) -> dict | None:
    trainer = WatchedTrainer(cfg)
    if comm.is_main_process():
        _write_config(trainer.known_classes().written_into(cfg), args)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def _evaluate(cfg: CfgNode, args: argparse.Namespace) -> dict:
    resume = args.resume
    model = WatchedTrainer.build_model(cfg)
    checkpointer = Checkpointer(model, save_dir=cfg.OUTPUT_DIR)
    path = check_before_loading(checkpointer, cfg.MODEL.WEIGHTS, resume=resume)
    if (names := recorded_names(path)) is not None:
        cfg = _with_class_names(cfg, names)
    once_per_node(partial(_check_classes, cfg), datasets=cfg.DATASETS.TEST)
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    results = WatchedTrainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        results.update(WatchedTrainer.test_with_TTA(cfg, model))
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def _with_class_names(cfg: CfgNode, names: list[str]) -> CfgNode:
    """A copy of a config for the evaluation of a model with these classes, whatever it was trained on."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TRAIN, cfg.MODEL.MASKX_CLASSES.NAMES = (), names
    return cfg


class WatchedTrainer(Trainer):
    """A trainer with progress bars, because its log goes to a file."""

    def build_hooks(self) -> list[HookBase]:
        bar = [ProgressBar("training")] if comm.is_main_process() else []
        return [*bar, *super().build_hooks()]

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable:
        loader = super().build_test_loader(cfg, dataset_name)
        return Watched(loader, f"evaluating on {dataset_name}") if comm.is_main_process() else loader


def _report(cfg: CfgNode) -> str:
    """The tables of the last evaluation, and a list of the output files."""
    folders = {name: evaluation_folder(cfg, name) for name in _coco_datasets(cfg)}
    if cfg.TEST.AUG.ENABLED:
        augmented = {f"{n}, test-time augmentation": evaluation_folder(cfg, n, TTA_FOLDER) for n in folders}
        folders |= augmented
    limit = f"with at most {detections_per_class(cfg)} detections of a class in an image"
    tables = [
        f"AP on {name}, {limit}\n\n{table}"
        for name, folder in folders.items()
        if (table := read_table(folder))
    ]
    return "\n\n".join([*tables, contents(Path(cfg.OUTPUT_DIR))])


def check_evaluation(cfg: CfgNode) -> None:
    """
    Check, before hours of training, that the evaluation at the end has what it needs.

    Raises:
        FileNotFoundError: an annotation file or an image of DATASETS.TEST does not exist.
        ValueError: an annotation file cannot be used, or has other classes than the model.
    """
    for name in _coco_datasets(cfg):
        # Loading the dataset also sets its classes.
        paths = [record["file_name"] for record in load_dataset(name)]
        local = (Path(path) for path in paths if "://" not in path)
        check_images_exist(local, of=f"DATASETS.TEST {name!r}")
    _check_classes(cfg)


def _check_classes(cfg: CfgNode) -> None:
    """Raise ValueError unless each of DATASETS.TEST has the classes of the model, in any order."""
    names = model_class_names(cfg)
    for name in _coco_datasets(cfg):
        check_num_classes(cfg, name)
        if names is not None:
            match_classes(names, class_names(name), what=f"DATASETS.TEST {name!r}")


def _coco_datasets(cfg: CfgNode) -> list[str]:
    """The datasets of DATASETS.TEST that this project evaluates, including unregistered ones."""
    other = {n for n in MetadataCatalog.list() if MetadataCatalog.get(n).get("evaluator_type") != "coco"}
    return [name for name in cfg.DATASETS.TEST if name not in other]


def _checkpoints(folder: Path) -> list[Path]:
    """The checkpoints that a run has left."""
    return [*folder.glob("model_*.pth"), *folder.glob("last_checkpoint")]


def _check_folder(cfg: CfgNode, *, resume: bool, overwrite: bool) -> None:
    """A folder belongs to one run. Files of different runs must not be mixed."""
    folder = Path(cfg.OUTPUT_DIR)
    earlier = _checkpoints(folder)
    if earlier and resume:
        _check_not_overruled(cfg, folder / "config.yaml")
    elif earlier and not overwrite:
        raise InputError(
            f"OUTPUT_DIR {folder} holds {earlier[0].name} of an earlier run: continue it with --resume, "
            "give another OUTPUT_DIR, or use --overwrite"
        )


def _clear_folder(folder: Path, *, resume: bool) -> None:
    """Remove half-written files of a killed run and, unless resuming, its checkpoints and metrics."""
    if comm.is_main_process():
        old = [*folder.glob("*.pth.*.partial")]
        for path in old if resume else [*old, *_checkpoints(folder), folder / METRICS_FILE]:
            path.unlink(missing_ok=True)


def _check_not_overruled(cfg: CfgNode, config_file: Path) -> None:
    """A resumed run keeps these values, because they are part of the optimizer's state."""
    if not config_file.is_file():
        return
    solver = with_new_keys(read_yaml(config_file)).get("SOLVER")
    solver = solver if isinstance(solver, dict) else {}
    for name in ("MASKX_OPTIMIZER", "BASE_LR", "MOMENTUM", "WEIGHT_DECAY"):
        if name in solver and solver[name] != cfg.SOLVER[name]:
            raise InputError(
                f"SOLVER.{name} is {cfg.SOLVER[name]}, but the run that --resume continues keeps "
                f"{solver[name]}: keep that value, or start a new run"
            )


def main(arguments: list[str] | None = None, *, program: str = "train_net.py") -> None:
    """
    Parse Detectron2's arguments and launch the processes.

    Args:
        arguments: command-line arguments; those of this process if None.
        program: name of the program, for messages.
    """
    parser = default_argument_parser()
    parser.prog = program
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier run in OUTPUT_DIR")
    parser.add_argument("--traceback", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(arguments)
    if not args.config_file:
        sys.exit("give a config: --config-file configs/maskx_R_50_FPN_1x.yaml")
    with one_sentence(program, show_traceback=args.traceback):
        try:
            launch(
                train_or_evaluate,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(args,),
            )
        except ProcessExitedException as error:
            if error.exit_code not in (128 + signal.SIGINT, 128 + signal.SIGTERM):
                raise
            sys.exit(error.exit_code)
