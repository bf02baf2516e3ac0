"""What one process of a machine does for all of its processes: reading datasets."""

import pickle
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from detectron2.data import MetadataCatalog
from detectron2.utils import comm

from maskx_d2.data.records import Records

_T = TypeVar("_T")
_OF_LOADING = ("thing_classes", "thing_dataset_id_to_contiguous_id")


def once_a_machine(function: Callable[[], _T], *, datasets: Sequence[str]) -> _T:
    """
    Call a function in the first process of each machine. All processes of the run must come here.

    Args:
        function: what it returns must be small, and can be pickled.
        datasets: names of those that it may load. What Detectron2 then knows of them, all processes know.

    Returns:
        What the function has returned, in the process that called it on this machine.

    Raises:
        Exception: what it has raised on any machine, in all processes.
    """
    if comm.get_world_size() == 1:
        return function()
    local_rank = comm.get_local_rank()
    own = _outcome(function, datasets) if local_rank == 0 else None
    outcomes = comm.all_gather(_that_can_be_sent(own))
    for outcome in (own, *outcomes):  # of its own error a process has the traceback
        if isinstance(outcome, Exception):
            raise outcome
    result, metadata = outcomes[comm.get_rank() - local_rank]
    for name, values in metadata.items():
        MetadataCatalog.get(name).set(**values)
    return result


def _outcome(function: Callable[[], _T], datasets: Sequence[str]) -> tuple[_T, dict[str, dict]] | Exception:
    try:
        result = function()
    except Exception as error:
        return error
    known = {name: MetadataCatalog.get(name).as_dict() for name in datasets}
    return result, {
        name: {key: values[key] for key in _OF_LOADING if key in values} for name, values in known.items()
    }


def _that_can_be_sent(outcome: object) -> object:
    """Some errors cannot be unpickled."""
    if isinstance(outcome, Exception):
        try:
            pickle.loads(pickle.dumps(outcome))
        except Exception:
            return RuntimeError(f"{type(outcome).__name__}: {outcome}")
    return outcome


def load_once_a_machine(
    load: Callable[[], tuple[list[dict], _T]], *, datasets: Sequence[str]
) -> tuple[Sequence[dict], _T]:
    """
    Load a dataset in the first process of each machine, for all of them. All processes of the run must come
    here.

    Args:
        load: returns Detectron2's dicts, and what else all processes shall know, which must be small.
        datasets: see :func:`once_a_machine`.

    Returns:
        The same; where there are several processes, the dicts as :class:`Records` in memory that those of a
        machine share.
    """
    if comm.get_world_size() == 1:
        return load()

    def write() -> tuple[Path, _T]:
        dicts, more = load()
        with tempfile.NamedTemporaryFile(prefix="maskx_d2_", suffix=".records", delete=False) as file:
            path = Path(file.name)
        try:
            Records.of(dicts).write(path)
        except BaseException:
            path.unlink()
            raise
        return path, more

    path, more = once_a_machine(write, datasets=datasets)
    records = Records.read(path)
    comm.synchronize()
    if comm.get_local_rank() == 0:
        path.unlink()
    return records, more
