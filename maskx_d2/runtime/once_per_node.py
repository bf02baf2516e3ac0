"""Runs a function, such as reading a dataset, in one process per node, and shares its result."""

import pickle
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from maskx_d2.data.records import Records

_T = TypeVar("_T")


def all_gather(value: object) -> list:
    """The values of all processes of torch's default group, in the order of their ranks."""
    values = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


@dataclass(frozen=True)
class Ranks:
    """Which process of a run this is. The processes of a node have consecutive ranks."""

    rank: int = 0
    local_rank: int = 0
    """Rank among the processes of its node."""

    world_size: int = 1
    all_gather: Callable[[object], list] = all_gather
    """Exchanges values between all processes, which must all call it; returns the values by rank."""


def once_per_node(function: Callable[[], _T], ranks: Ranks) -> _T:
    """
    Call a function in the first process of each node. All processes of the run must call this.

    Args:
        function: its result must be small and picklable.
        ranks: ranks of this process.

    Returns:
        The function's result in the process of this node that called it.

    Raises:
        Exception: whatever the function raised on any node, in all processes.
    """
    if ranks.world_size == 1:
        return function()
    own = _outcome(function) if ranks.local_rank == 0 else None
    outcomes = ranks.all_gather(_that_can_be_sent(own))
    for outcome in (own, *outcomes):  # own first: a process has the traceback of its own error
        if isinstance(outcome, Exception):
            raise outcome
    (result,) = outcomes[ranks.rank - ranks.local_rank]
    return result


def _outcome(function: Callable[[], _T]) -> tuple[_T] | Exception:
    try:
        return (function(),)
    except Exception as error:
        return error


def _that_can_be_sent(outcome: object) -> object:
    """Replace errors that cannot be unpickled."""
    if isinstance(outcome, Exception):
        try:
            pickle.loads(pickle.dumps(outcome))
        except Exception:
            return RuntimeError(f"{type(outcome).__name__}: {outcome}")
    return outcome


def load_once_per_node(load: Callable[[], tuple[Iterable, _T]], ranks: Ranks) -> tuple[Sequence, _T]:
    """
    Load a dataset in the first process of each node, for all processes of the node. All processes of the
    run must call this.

    Args:
        load: returns a dataset's records, and a small object that all processes need.
        ranks: ranks of this process.

    Returns:
        The same; if there are several processes, the records are :class:`Records` in memory that the
        processes of a node share.
    """
    if ranks.world_size == 1:
        return load()

    def write() -> tuple[Path, _T]:
        records, more = load()
        with tempfile.NamedTemporaryFile(prefix="maskx_d2_", suffix=".records", delete=False) as file:
            path = Path(file.name)
        try:
            Records.of(records).write(path)
        except BaseException:
            path.unlink()
            raise
        return path, more

    path, more = once_per_node(write, ranks)
    records = Records.read(path)
    ranks.all_gather(None)  # all processes have read it
    if ranks.local_rank == 0:
        path.unlink()
    return records, more
