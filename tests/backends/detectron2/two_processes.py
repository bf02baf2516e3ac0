"""
``train_net.py`` in two processes without a GPU, for which Detectron2's own DDP is not made.

    python -m tests.backends.detectron2.two_processes RANK ITERATION --config-file FILE ...

At the start of an iteration, a rank (or "parent") is sent SIGTERM.
"""

import os
import signal
import sys

import torch
from detectron2.engine import HookBase, defaults
from detectron2.utils import comm
from torch.nn.parallel import DistributedDataParallel

from maskx_d2.backends.detectron2 import command_line


class Stop(HookBase):
    def __init__(self, rank: str, iteration: int):
        self.rank, self.iteration = rank, iteration

    def before_step(self) -> None:
        told = str(comm.get_rank()) == self.rank or (self.rank == "parent" and comm.is_main_process())
        if told and self.trainer.iter == self.iteration:
            os.kill(os.getppid() if self.rank == "parent" else os.getpid(), signal.SIGTERM)


class StoppedTrainer(command_line.WatchedTrainer):
    def build_hooks(self) -> list[HookBase]:
        return [*super().build_hooks(), Stop(sys.argv[1], int(sys.argv[2]))]


# Once more in each of the processes, which import this file.
torch.set_num_threads(1)
defaults.create_ddp_model = lambda model, **options: DistributedDataParallel(model, **options)
command_line.WatchedTrainer = StoppedTrainer

if __name__ == "__main__":
    # A port of its own: Detectron2's usual one is the same for all runs of a user.
    command_line.main(["--num-gpus", "2", "--dist-url", "auto", *sys.argv[3:]])
