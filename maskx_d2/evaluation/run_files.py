"""Writes and reads the files of a training run, for both backends."""

import contextlib
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, TypedDict, TypeVar

import msgspec
import numpy as np
from tabulate import tabulate
from typing_extensions import NotRequired

from maskx_d2.data.errors import InputError, MissingFileError
from maskx_d2.data.files import check_no_link, file_digest, load_json, write_json
from maskx_d2.evaluation.average_precision import average_precision, class_groups, frequency_thirds
from maskx_d2.evaluation.tables import Results, group_table

EVALUATION_FOLDER = "inference"
RESULTS_FILE = "ap_by_group.json"
"""AP on each group of classes (see :data:`Results`), in the evaluation folder."""

EVALUATION_FILE = "evaluation.json"
"""What was evaluated, and AP of each class, in the evaluation folder: an :class:`Evaluation`."""

DETECTIONS_FILE = "coco_instances_results.json"
"""Detections in COCO's results format, in the evaluation folder."""

METRICS_FILE = "metrics.json"
"""Losses, learning rate and results, with one line of JSON for each time they were logged."""

LOG_FILE = "log.txt"

EVALUATION_FILES = (f"{LOG_FILE}*", f"{EVALUATION_FOLDER}/*", f"{EVALUATION_FOLDER}_TTA/*")
"""Files that an evaluation writes to a run's folder; see :class:`maskx_d2.runtime.outputs.OutputFolder`."""

RUN_FILES = (
    *EVALUATION_FILES,
    *("config.yaml", "hparams.yaml", METRICS_FILE, "events.out.tfevents*"),
    *("last_checkpoint", "last.ckpt", "model_*.pth", "model_*.ckpt"),
)
"""Files that a training run writes to its folder."""

_Content = TypeVar("_Content")


Coordinate = Annotated[float, msgspec.Meta(ge=-1e9, le=1e9)]
"""In pixels. Drawing scales coordinates, and would scale larger numbers to infinity."""


class _Rle(TypedDict):
    size: list[int]
    counts: str


class Detection(TypedDict):
    """A detection in COCO's results format. It may have more keys."""

    image_id: int
    category_id: int
    score: float
    bbox: Annotated[list[Coordinate], msgspec.Meta(min_length=4, max_length=4)]
    segmentation: NotRequired[_Rle]


@dataclass(frozen=True)
class Evaluation:
    """The data and the results of an evaluation."""

    annotations: str
    """Path of the annotation file."""

    annotations_sha256: str
    images: str | None
    """Path of its image folder, if it is known."""

    class_names: list[str]
    category_ids: list[int]
    with_masks: list[int]
    """Indices of the classes of A."""

    by_group: Results
    by_class: Mapping[str, list[float | None]]
    """``{"segm"|"bbox": AP of each class in per cent}``; NaN or None where there is no ground truth."""

    @property
    def has_two_sides(self) -> bool:
        """Whether there are classes in B."""
        return len(self.with_masks) < len(self.class_names)


def read_table(folder: str | Path) -> str | None:
    """The :func:`maskx_d2.evaluation.tables.group_table` of an evaluation folder; None if it has none."""
    path = Path(folder) / RESULTS_FILE
    return group_table(load_json(path, what="results")) if path.is_file() else None


_CONTENTS = {
    "model_final.*": "the weights",
    "last.ckpt": "to resume from",
    "last_checkpoint": "which checkpoint to resume from",
    EVALUATION_FOLDER: "AP and detections",
    METRICS_FILE: "losses",
    "events.out.tfevents*": "losses for TensorBoard",
    LOG_FILE: "all other messages",
}


def log_file(folder: Path, *, rank: int = 0) -> Path:
    """The log file of a process: :data:`LOG_FILE` for the first, others are named as by Detectron2."""
    return folder / (f"{LOG_FILE}.rank{rank}" if rank else LOG_FILE)


def contents(folder: Path) -> str:
    """A list of a run's files, for users."""
    found = {what: next(folder.glob(name), None) for name, what in _CONTENTS.items()}
    table = tabulate([(path.name, what) for what, path in found.items() if path], tablefmt="plain")
    return f"In {folder}:\n{textwrap.indent(table, '  ')}"


def evaluation_of(
    precisions: Mapping[str, np.ndarray],
    *,
    annotations: Path,
    images: str | None,
    class_names: Sequence[str],
    category_ids: Sequence[int],
    with_masks: Sequence[int],
    instance_counts: Sequence[int] | None = None,
) -> Evaluation:
    """
    Args:
        precisions: precision for ``"bbox"`` and ``"segm"``, as available; see :func:`class_precisions`.
        annotations, images, class_names, category_ids, with_masks: see :class:`Evaluation`.
        instance_counts: number of training instances of each class, if known. AP is then also reported on
            thirds of the classes.
    """
    groups = class_groups(with_masks, len(class_names))
    if instance_counts is not None:
        groups |= frequency_thirds(instance_counts)
    single = {str(i): [i] for i in range(len(class_names))}
    by_class = {
        task: [values["AP"] for values in average_precision(precision, single).values()]
        for task, precision in precisions.items()
    }
    return Evaluation(
        annotations=str(annotations.resolve()),
        annotations_sha256=file_digest(annotations),
        images=images,
        class_names=list(class_names),
        category_ids=list(category_ids),
        with_masks=groups["A"],
        by_group={task: average_precision(precision, groups) for task, precision in precisions.items()},
        by_class=by_class,
    )


def write_evaluation(folder: Path, evaluation: Evaluation) -> None:
    """Write :data:`RESULTS_FILE` and :data:`EVALUATION_FILE`."""
    write_json(folder / RESULTS_FILE, evaluation.by_group)
    write_json(folder / EVALUATION_FILE, asdict(evaluation))


@dataclass(frozen=True)
class Run:
    """The output of a training run."""

    folder: Path
    evaluation: Evaluation

    def detections(self) -> list[Detection]:
        """
        Raises:
            ValueError: the file is not what an evaluation writes.
        """
        path = self.folder / EVALUATION_FOLDER / DETECTIONS_FILE
        check_no_link(path)
        if not path.is_file():
            return []
        found = _decode(path, list[Detection])
        known = set(self.evaluation.category_ids)
        unknown = next((d["category_id"] for d in found if d["category_id"] not in known), None)
        if unknown is not None:
            raise InputError(f"{path} has category_id {unknown}, which is not among those evaluated")
        return found

    def metrics(self) -> list[dict[str, float]]:
        """The logged values, by iteration. Of an iteration that was logged again, the last values count."""
        path = self.folder / METRICS_FILE
        check_no_link(path)
        if not path.is_file():
            return []
        at: dict[int, dict] = {}
        for line in path.read_bytes().splitlines():
            # A run that was killed may have left half a line.
            with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                logged = msgspec.json.decode(line, type=dict[str, object])
                iteration = logged.get("iteration")
                if type(iteration) is int and 0 <= iteration < 2**53:
                    numbers = {n: v for n, v in logged.items() if type(v) in (int, float) and abs(v) < 1e30}
                    at.setdefault(iteration, {}).update(numbers)
        return [at[iteration] for iteration in sorted(at)]


def read_run(folder: Path) -> Run:
    """
    Raises:
        FileNotFoundError: there is no evaluated run in the folder.
        ValueError: its files are invalid.
    """
    path = folder / EVALUATION_FOLDER / EVALUATION_FILE
    check_no_link(path)
    if not path.is_file():
        raise MissingFileError(
            f"{folder} has no {path.relative_to(folder)}, expected the output of an evaluated run"
        )
    evaluation = _decode(path, Evaluation)
    num_classes = len(evaluation.class_names)
    lists = {"category_ids": evaluation.category_ids, **evaluation.by_class}
    for name, values in lists.items():
        if len(values) != num_classes:
            raise InputError(
                f"{path} has {len(values)} {name} for {num_classes} classes, expected one each"
            )
    indices = evaluation.with_masks
    if len(set(indices)) != len(indices) or not set(indices) <= set(range(num_classes)):
        raise InputError(f"{path} has with_masks that are not indices of its {num_classes} classes")
    if len(set(evaluation.category_ids)) != num_classes:
        raise InputError(f"{path} has category_ids twice, expected each once")
    return Run(folder, evaluation)


def _decode(path: Path, kind: type[_Content]) -> _Content:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        what = "JSON" if type(error) is msgspec.DecodeError else "what an evaluation writes"
        raise InputError(f"{path} is not {what}: {error}") from error
