"""Runs a function in one process per node, and shares its result and Detectron2's metadata."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from detectron2.data import MetadataCatalog
from detectron2.utils import comm

from maskx_d2.runtime import once_per_node as any_backend

_T = TypeVar("_T")
_OF_LOADING = ("thing_classes", "thing_dataset_id_to_contiguous_id")


def once_per_node(function: Callable[[], _T], *, datasets: Sequence[str]) -> _T:
    """
    :func:`maskx_d2.runtime.once_per_node.once_per_node`.

    Args:
        function: its result must be small and picklable.
        datasets: names of the datasets that it may load. Their metadata are then set in all processes.
    """
    result, metadata = any_backend.once_per_node(lambda: (function(), _metadata(datasets)), _ranks())
    _set(metadata)
    return result


def load_once_per_node(
    load: Callable[[], tuple[list[dict], _T]], *, datasets: Sequence[str]
) -> tuple[Sequence[dict], _T]:
    """
    :func:`maskx_d2.runtime.once_per_node.load_once_per_node`.

    Args:
        load: returns Detectron2's dicts, and a small object that all processes need.
        datasets: see :func:`once_per_node`.
    """

    def load_with_metadata() -> tuple[list[dict], tuple[_T, dict]]:
        dicts, more = load()
        return dicts, (more, _metadata(datasets))

    dicts, (more, metadata) = any_backend.load_once_per_node(load_with_metadata, _ranks())
    _set(metadata)
    return dicts, more


def _ranks() -> any_backend.Ranks:
    return any_backend.Ranks(comm.get_rank(), comm.get_local_rank(), comm.get_world_size(), comm.all_gather)


def _metadata(datasets: Sequence[str]) -> dict[str, dict]:
    known = {name: MetadataCatalog.get(name).as_dict() for name in datasets}
    return {
        name: {key: values[key] for key in _OF_LOADING if key in values} for name, values in known.items()
    }


def _set(metadata: dict[str, dict]) -> None:
    for name, values in metadata.items():
        MetadataCatalog.get(name).set(**values)
