"""Detectron2's usual training command line."""

import argparse
import logging
import sys

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from maskx_d2.hosts.detectron2.checkpoint import check_before_loading
from maskx_d2.hosts.detectron2.config import load_config
from maskx_d2.hosts.detectron2.datasets import register_datasets
from maskx_d2.hosts.detectron2.trainer import Trainer


def read_config(config_file: str, overrides: list | None = None) -> CfgNode:
    """Read a config, register its datasets, and fall back to the CPU where there is no GPU."""
    cfg = load_config(config_file, overrides)
    register_datasets(cfg)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logging.getLogger(__name__).warning(
            "MODEL.DEVICE is %r, but torch finds no GPU: running on the CPU", cfg.MODEL.DEVICE
        )
        cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    return cfg


def train_or_evaluate(args: argparse.Namespace) -> dict | None:
    """What each process of a run does: train and evaluate, or with ``--eval-only`` evaluate."""
    cfg = read_config(args.config_file, args.opts)
    default_setup(cfg, args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        checkpointer = DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
        check_before_loading(checkpointer, cfg.MODEL.WEIGHTS, resume=args.resume)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = Trainer.test(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def main(arguments: list[str] | None = None) -> None:
    """Parse Detectron2's arguments and launch the processes."""
    args = default_argument_parser().parse_args(arguments)
    if not args.config_file:
        sys.exit("give a config: --config-file configs/maskx_R_50_FPN_1x.yaml")
    launch(
        train_or_evaluate,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
