"""The files that a training run leaves, whichever its host: writing and reading them."""

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from maskx_d2.data.files import write_json
from maskx_d2.evaluation.average_precision import average_precision, class_groups, frequency_thirds
from maskx_d2.evaluation.tables import Results

EVALUATION_FOLDER = "inference"
RESULTS_FILE = "ap_by_group.json"
"""AP on each group of classes (see :data:`Results`), in the evaluation folder."""

EVALUATION_FILE = "evaluation.json"
"""What was evaluated, and AP of each class, in the evaluation folder: an :class:`Evaluation`."""

DETECTIONS_FILE = "coco_instances_results.json"
"""Detections in COCO's results format, in the evaluation folder."""

METRICS_FILE = "metrics.json"
"""Losses, learning rate and results, a line of JSON for each time they were logged."""


@dataclass(frozen=True)
class Evaluation:
    """What was evaluated on what, and what came out."""

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
        precisions: ``COCOeval.eval["precision"]`` for each of ``"bbox"`` and ``"segm"`` that there is.
        annotations, images, class_names, category_ids, with_masks: see :class:`Evaluation`.
        instance_counts: training instances of each class, if they are known: AP is then reported on thirds
            of the classes, too.
    """
    groups = class_groups(with_masks, len(class_names))
    if instance_counts is not None:
        groups |= frequency_thirds(instance_counts)
    single = {str(i): [i] for i in range(len(class_names))}
    by_class = {
        task: [values["AP"] for values in average_precision(precision, single).values()]
        for task, precision in precisions.items()
    }
    digest = hashlib.sha256(annotations.read_bytes()).hexdigest()
    return Evaluation(
        annotations=str(annotations.resolve()),
        annotations_sha256=digest,
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
    """What a training run has left."""

    folder: Path
    evaluation: Evaluation

    def detections(self) -> list[dict]:
        """In COCO's results format."""
        path = self.folder / EVALUATION_FOLDER / DETECTIONS_FILE
        if not path.is_file():
            return []
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON: {error}") from error

    def metrics(self) -> list[dict]:
        """What was logged, in the order of the iterations; what a resumed run logged again counts."""
        path = self.folder / METRICS_FILE
        if not path.is_file():
            return []
        at: dict[int, dict] = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            # A run that was killed may have left half a line.
            with contextlib.suppress(json.JSONDecodeError):
                logged = json.loads(line)
                at.setdefault(logged["iteration"], {}).update(logged)
        return [at[iteration] for iteration in sorted(at)]


def read_run(folder: Path) -> Run:
    """
    Raises:
        FileNotFoundError: there is no evaluated run in the folder.
        ValueError: its files are not what they should be.
    """
    path = folder / EVALUATION_FOLDER / EVALUATION_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no {path.relative_to(folder)}, expected the output of a run that was evaluated"
        )
    try:
        return Run(folder, Evaluation(**json.loads(path.read_text(encoding="utf-8"))))
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{path} is not what an evaluation writes: {error}") from error
