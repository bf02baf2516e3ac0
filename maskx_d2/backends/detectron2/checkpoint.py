"""
Reading and writing Detectron2 checkpoints. Those that would run code or have other classes are refused.
Each is written completely or not at all.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import IO
from urllib.parse import urlparse

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from torch import nn

from maskx_d2.data.errors import InputError, MissingFileError
from maskx_d2.data.files import check_replaceable, replacing
from maskx_d2.inference.mask_scores import ScoreCalibration
from maskx_d2.runtime.checkpoints import are_classes, check_classes, check_finite, read_checkpoint
from maskx_d2.runtime.pickles import read_array_pickle


class Checkpointer(DetectionCheckpointer):
    """
    Detectron2's checkpointer, but it reads files as data: no file can run code, take more memory than its
    size allows, or bring weights that are not finite. Files are written completely or not at all.
    """

    def __init__(self, model: nn.Module, save_dir: str = "", **checkpointables):
        """
        Args:
            model: the model to load into and to save.
            save_dir: folder of the run.
            checkpointables: other objects with a ``state_dict``.
        """
        super().__init__(model, save_dir, **checkpointables)
        self.path_manager = WholeFiles()

    def has_checkpoint(self) -> bool:
        check_replaceable(self._last)
        return super().has_checkpoint()

    def get_checkpoint_file(self) -> str:
        """
        Raises:
            FileNotFoundError: the file that ``last_checkpoint`` names does not exist.
            ValueError: ``last_checkpoint`` names something other than a .pth file in its own folder.
        """
        name = self._last.read_text(encoding="utf-8", errors="replace").strip()
        if name != Path(name).name or not name.endswith(".pth") or not name.isprintable():
            raise InputError(f"{self._last} names {name[:200]!r}, expected a .pth file in its own folder")
        path = Path(self.save_dir, name)
        check_replaceable(path)
        if not path.is_file():
            raise MissingFileError(f"{self._last} names {name!r}, which does not exist")
        return str(path)

    @property
    def _last(self) -> Path:
        return Path(self.save_dir, "last_checkpoint")

    def _load_file(self, filename: str) -> dict:
        content = _blobs(Path(filename)) if filename.endswith(".pkl") else super()._load_file(filename)
        if not isinstance(content["model"], dict):
            raise InputError(f"checkpoint {filename} has no weights in 'model', expected names and tensors")
        check_finite(filename, content["model"])
        return content

    def _torch_load(self, f: str) -> dict:
        return read_checkpoint(f)


def _blobs(path: Path) -> dict:
    """The weights in a pickle of Detectron2's model zoo, Caffe2's Detectron or ImageNet pre-training."""
    content = read_pickle(path)
    if {"model", "__author__"} <= content.keys():
        return content
    blobs = content.get("blobs", content)
    if isinstance(blobs, dict):
        blobs = {name: blob for name, blob in blobs.items() if not str(name).endswith("_momentum")}
    return {"model": blobs, "__author__": "Caffe2", "matching_heuristics": True}


def check_weights(path: str) -> None:
    """
    Read a checkpoint as data before Detectron2 unpickles it.

    Args:
        path: as in MODEL.WEIGHTS: a file, a URL that Detectron2 supports, or empty.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, or holds something other than arrays, tensors and plain values.
    """
    if not path:
        return
    path = _without_query(path)
    if "://" not in path:
        if not Path(path).is_file():
            raise MissingFileError(f"MODEL.WEIGHTS: checkpoint {path} is not a file")
        if Path(path).stat().st_size == 0:
            raise InputError(f"checkpoint {path} is empty")
    local = Path(PathManager.get_local_path(path))
    if path.endswith(".pkl"):
        read_pickle(local)
    else:
        read_checkpoint(local)


def read_pickle(path: Path) -> dict:
    """
    Read a pickle of arrays and plain values, including pickles of Python 2.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a pickle, or holds something else.
    """
    if not path.is_file():
        raise MissingFileError(f"checkpoint {path} is not a file")
    try:
        content = read_array_pickle(path)
    except Exception as error:  # anything the unpickler raises for a file that is not a pickle
        raise InputError(f"checkpoint {path} is refused: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"checkpoint {path} holds a {type(content).__name__}, expected a dictionary")
    return content


def check_before_loading(checkpointer: DetectionCheckpointer, path: str, *, resume: bool) -> str:
    """Run ``check_weights`` on the file that ``checkpointer.resume_or_load`` will read; return its path."""
    if resume and checkpointer.has_checkpoint():
        path = checkpointer.get_checkpoint_file()
    check_weights(path)
    return path


class WholeFiles:
    """
    Detectron2's path manager, but files are written completely or not at all. For
    ``DetectionCheckpointer.path_manager``.
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


@dataclass(frozen=True)
class KnownClasses:
    """The classes of a model, in the order of their contiguous indices."""

    names: list[str]
    category_ids: list[int]
    with_masks: list[int]
    """Indices of the classes whose masks it was trained with."""

    by_teacher: list[int] = field(default_factory=list)
    """Indices of the others that it was trained with masks by a teacher of."""

    @classmethod
    def of_config(cls, cfg: CfgNode) -> "KnownClasses | None":
        """The classes in a run's ``config.yaml``; None for a hand-written config, which has none."""
        classes = cfg.MODEL.MASKX_CLASSES
        if not classes.NAMES:
            return None
        known = cls(
            classes.NAMES, classes.CATEGORY_IDS, classes.TRAINED_WITH_MASKS, classes.TRAINED_BY_TEACHER
        )
        if not known.are_valid():
            raise InputError(
                f"MODEL.MASKX_CLASSES has {len(classes.NAMES)} names, expected a category id for each, and "
                "valid indices in TRAINED_WITH_MASKS and TRAINED_BY_TEACHER"
            )
        return known

    def are_valid(self) -> bool:
        """Whether they have the form that this project writes."""
        of_both = (self.with_masks, self.by_teacher)
        return all(are_classes(self.names, self.category_ids, indices) for indices in of_both)

    def written_into(self, cfg: CfgNode) -> CfgNode:
        """A copy of a config with these classes as MODEL.MASKX_CLASSES."""
        cfg = cfg.clone()
        cfg.defrost()
        classes = cfg.MODEL.MASKX_CLASSES
        classes.NAMES, classes.CATEGORY_IDS = self.names, self.category_ids
        classes.TRAINED_WITH_MASKS, classes.TRAINED_BY_TEACHER = self.with_masks, self.by_teacher
        return cfg


class ClassList:
    """
    The classes of a run, saved in its checkpoints so that a model can be used without its datasets. For
    ``DetectionCheckpointer.add_checkpointable``. Resuming from a checkpoint with other classes is an error.
    """

    KEY = "classes"

    def __init__(
        self,
        names: Callable[[], Sequence[str]],
        *,
        folder: str,
        more: Callable[[], Mapping[str, Sequence[int]]] = dict,
    ):
        """
        Args:
            names: returns the class names in the order of their contiguous indices.
            folder: folder of the run, for the error message.
            more: returns the other fields of :class:`KnownClasses`.
        """
        self._names = names
        self._folder = folder
        self._more = more

    def state_dict(self) -> dict[str, list]:
        return {"names": list(self._names()), **{name: list(v) for name, v in self._more().items()}}

    def load_state_dict(self, state: dict[str, list]) -> None:
        check_classes(f"in {self._folder}", state["names"], self._names())


def classes_of_weights(path: str) -> KnownClasses | None:
    """
    Args:
        path: as in MODEL.WEIGHTS.

    Returns:
        The classes recorded in the checkpoint; None if there are none, as in checkpoints of 0.2.0 or of
        other projects.

    Raises:
        ValueError: the recorded classes are not in the form that this project writes.
    """
    state = _class_state(path)
    names = {f.name for f in fields(KnownClasses)}
    # 0.3.0 recorded no classes by a teacher.
    if not isinstance(state, dict) or not names - {"by_teacher"} <= state.keys() <= names:
        return None
    known = KnownClasses(**state)
    if not known.are_valid():
        name = _without_query(path)
        raise InputError(f"checkpoint {name} does not say which classes it knows, expected names and ids")
    return known


def check_classes_of_weights(path: str, names: Sequence[str]) -> None:
    """
    Args:
        path: as in MODEL.WEIGHTS.
        names: the expected class names.

    Raises:
        ValueError: other classes are recorded in the checkpoint. Checkpoints of other projects record none.
    """
    found = recorded_names(path)
    if found is not None:
        check_classes(_without_query(path), found, names)


def check_order_of_classes(path: str, names: Sequence[str]) -> None:
    """
    Weights of other classes may be trained further, but not those of the same classes in another order.

    Args:
        path: as in MODEL.WEIGHTS.
        names: names of the model's classes.

    Raises:
        ValueError: the checkpoint records the same classes in another order.
    """
    found = recorded_names(path)
    if found is not None and sorted(found) == sorted(names):
        check_classes(_without_query(path), found, names)


def recorded_names(path: str) -> list[str] | None:
    """The class names recorded in a checkpoint; None if there are none, as in those of other projects."""
    state = _class_state(path)
    return None if state is None else list(state["names"])


def calibration_of_weights(path: str) -> ScoreCalibration | None:
    """
    Args:
        path: as in MODEL.WEIGHTS.

    Returns:
        The calibration of mask scores in the checkpoint; None if there is none.
    """
    return ScoreCalibration.of_checkpoint(_content(path))


def _class_state(path: str) -> object:
    """The state of a :class:`ClassList` in a PyTorch checkpoint; None if there is none."""
    return _content(path).get(ClassList.KEY)


def _content(path: str) -> dict:
    """The content of a PyTorch checkpoint; empty for anything else."""
    path = _without_query(path)
    if not path.endswith(".pth") or not Path(path).is_file():
        return {}
    return read_checkpoint(path)


def _without_query(path: str) -> str:
    """Remove the query after the name, from which Detectron2 reads options."""
    return urlparse(path)._replace(query="").geturl()
