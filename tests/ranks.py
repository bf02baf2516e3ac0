"""Processes of one run, as tests start them by ``torch.multiprocessing.spawn``."""

from datetime import timedelta
from pathlib import Path

import torch


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
