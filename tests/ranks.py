"""Two processes of one run."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.multiprocessing as mp


def run(worker: Callable, *args) -> None:
    """Call a function with a rank and arguments in both. They are forked, and need not import torch."""
    mp.start_processes(worker, args, nprocs=2, start_method="fork")


def join(rank: int, folder: Path | str) -> None:
    """One of two processes begins its part. They meet by a file: a port may be somebody else's by then."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )


def leave() -> None:
    """Together: who is still waiting for a message would have lost the other."""
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
