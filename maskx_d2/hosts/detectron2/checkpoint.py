"""
What Detectron2 reads and writes as checkpoints: refused where it would run code or is of other classes,
written whole or not at all.
"""

import contextlib
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO
from urllib.parse import urlparse

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager

from maskx_d2.checkpoints import check_classes, read_checkpoint
from maskx_d2.data.files import replacing

# All that the checkpoints of Detectron2's model zoo and of ImageNet pre-training are made of.
_ALLOWED = {
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    *((f"numpy.{core}.multiarray", f) for core in ("core", "_core") for f in ("_reconstruct", "scalar")),
}


class _ArrayUnpickler(pickle.Unpickler):
    """Knows arrays and the types that pickle has built in."""

    def find_class(self, module: str, name: str):
        if (module, name) not in _ALLOWED:
            raise ValueError(
                f"it holds {module}.{name}, expected nothing but arrays: loading it could run code"
            )
        return super().find_class(module, name)


def check_weights(path: str) -> None:
    """
    Read a checkpoint as data before Detectron2 unpickles it.

    Args:
        path: as in MODEL.WEIGHTS: a file, an address that Detectron2 knows, or empty.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, or holds something else than arrays, tensors and plain values.
    """
    if not path:
        return
    # Detectron2 takes options from a query behind the name.
    path = urlparse(path)._replace(query="").geturl()
    if "://" not in path:
        if not Path(path).is_file():
            raise FileNotFoundError(f"MODEL.WEIGHTS: checkpoint {path} is no file")
        if Path(path).stat().st_size == 0:
            raise ValueError(f"checkpoint {path} is empty")
    local = Path(PathManager.get_local_path(path))
    if path.endswith(".pkl"):
        read_pickle(local)
    else:
        read_checkpoint(local)


def read_pickle(path: Path):
    """
    What is in a pickle of arrays and plain values, Python 2's too.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no pickle, or holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} is no file")
    try:
        with path.open("rb") as file:
            return _ArrayUnpickler(file, encoding="latin1").load()
    except Exception as error:  # whatever a file that is no pickle makes the unpickler stumble over
        raise ValueError(f"checkpoint {path} is refused: {error}") from error


def check_before_loading(checkpointer: DetectionCheckpointer, path: str, *, resume: bool) -> str:
    """``check_weights`` of what ``checkpointer.resume_or_load`` is going to read, which is returned."""
    if resume and checkpointer.has_checkpoint():
        path = checkpointer.get_checkpoint_file()
    check_weights(path)
    return path


class WholeFiles:
    """
    For ``DetectionCheckpointer.path_manager``: Detectron2's path manager, but a file that it writes is
    there whole or not at all.
    """

    def __getattr__(self, name: str):
        return getattr(PathManager, name)

    @contextlib.contextmanager
    def open(self, path: str, mode: str = "r") -> Iterator[IO]:
        if "w" not in mode or "://" in path:
            with PathManager.open(path, mode) as file:
                yield file
            return
        with replacing(Path(path)) as temporary, temporary.open(mode) as file:
            yield file


class ClassList:
    """
    The classes of a run as a part of its checkpoints: for ``DetectionCheckpointer.add_checkpointable``. A
    run that goes on with a checkpoint of others ends.
    """

    KEY = "classes"

    def __init__(self, names: Callable[[], Sequence[str]], *, folder: str):
        """
        Args:
            names: gives them in the order of their contiguous indices.
            folder: of the run, for the error.
        """
        self._names = names
        self._folder = folder

    def state_dict(self) -> dict[str, list[str]]:
        return {"names": list(self._names())}

    def load_state_dict(self, state: dict[str, list[str]]) -> None:
        check_classes(f"in {self._folder}", state["names"], self._names())


def check_classes_of_weights(path: str, names: Sequence[str]) -> None:
    """
    Args:
        path: as in MODEL.WEIGHTS.
        names: of the classes that it shall know.

    Raises:
        ValueError: the checkpoint says that it knows others. Those that are not of this project do not say.
    """
    path = urlparse(path)._replace(query="").geturl()
    if path.endswith(".pth") and Path(path).is_file():
        state = read_checkpoint(path).get(ClassList.KEY)
        if state is not None:
            check_classes(path, state["names"], names)
