"""
Cross-validation over classes: hide the masks of some classes that have them, train a mask head by each
recipe, and measure it on the hidden classes, in images that it was not trained on.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

import msgspec
import numpy as np

from maskx_d2.data.errors import InputError
from maskx_d2.data.files import write_text
from maskx_d2.evaluation.average_precision import average_precision, class_precisions
from maskx_d2.inference.frozen_detector import FrozenDetector, MaskHead
from maskx_d2.method import Recipe, Schedule
from maskx_d2.recipes.annotated_images import AnnotatedImages
from maskx_d2.recipes.measurement import (
    MeasuredImage,
    ObjectQuality,
    mask_results,
    masks_in_true_boxes,
)
from maskx_d2.recipes.roi_cache import RoiCache
from maskx_d2.recipes.training import train_mask_head


class Outcome(msgspec.Struct):
    """What was measured of one mask head."""

    hidden: list[int]
    """Indices of the classes whose masks it was not trained with."""

    average_precision: list[float | None]
    """Mask AP of each class in per cent; None where it has no ground truth."""

    classes: list[int]
    """Of the objects with true masks, as in :class:`ObjectQuality`; so are the next three."""

    areas: list[float]
    ious: list[float]
    scores: list[float]
    masks: list[dict | None]
    """For each of these objects its predicted mask as compressed RLE, if its class was hidden."""

    @property
    def objects(self) -> ObjectQuality:
        return ObjectQuality(
            np.array(self.classes), np.array(self.areas), np.array(self.ious), np.array(self.scores)
        )

    def mean_ap(self, classes: Sequence[int]) -> float:
        """Mean AP of some classes; NaN if none has ground truth."""
        return _mean(self.average_precision[c] for c in classes)

    def mean_iou(self, classes: Sequence[int]) -> float:
        """Mean over classes of the mean IoU of their objects; NaN if there are none."""
        return self.objects.mean_iou(classes)


def measure(
    detector: FrozenDetector,
    head: MaskHead,
    measured: Sequence[MeasuredImage],
    annotations: AnnotatedImages,
    *,
    hidden: Sequence[int],
    device: str = "cpu",
) -> Outcome:
    """
    Measure a mask head.

    Args:
        detector: the detector of the head.
        head: in eval mode.
        measured: the images, as the detector sees them.
        annotations: the same images.
        hidden: see :class:`Outcome`.
        device: name of a torch device.
    """
    objects, masks = masks_in_true_boxes(detector, head, measured, device=device)
    results = mask_results(detector, head, measured, category_ids=annotations.category_ids, device=device)
    precision = class_precisions(annotations.ground_truth, results, "segm")
    places = {category_id: place for place, category_id in enumerate(sorted(annotations.category_ids))}
    groups = {index: [places[i]] for index, i in enumerate(annotations.category_ids)}
    by_class = [of_class["AP"] for of_class in average_precision(precision, groups).values()]
    return Outcome(
        hidden=list(hidden),
        average_precision=[None if math.isnan(value) else value for value in by_class],
        classes=objects.classes.tolist(),
        areas=objects.areas.tolist(),
        ious=objects.ious.tolist(),
        scores=objects.scores.tolist(),
        masks=[m if c in hidden else None for m, c in zip(masks, objects.classes, strict=True)],
    )


@dataclass(frozen=True)
class CrossValidation:
    """The outcome of each recipe on each fold."""

    class_names: Sequence[str]
    folds: Sequence[Sequence[int]]
    outcomes: Mapping[str, Sequence[Outcome]]
    """Recipe -> an outcome for each fold."""

    teacher: ObjectQuality | None = None
    """The masks of a teacher as they are, of the objects that masks are measured on; None without one."""

    def hidden_ap(self, recipe: str) -> list[float]:
        """Mean mask AP of the hidden classes, for each fold."""
        return [outcome.mean_ap(outcome.hidden) for outcome in self.outcomes[recipe]]

    def hidden_iou(self, recipe: str) -> list[float]:
        """Mean IoU of masks in ground-truth boxes of the hidden classes, for each fold."""
        return [outcome.mean_iou(outcome.hidden) for outcome in self.outcomes[recipe]]

    def teacher_iou(self) -> list[float]:
        """As :meth:`hidden_iou`, of the masks of the teacher."""
        return [self.teacher.mean_iou(fold) for fold in self.folds]

    def seen_ap(self, recipe: str) -> list[float]:
        """Mean mask AP of the other classes with masks, for each fold."""
        classes = [index for fold in self.folds for index in fold]
        return [
            outcome.mean_ap([index for index in classes if index not in outcome.hidden])
            for outcome in self.outcomes[recipe]
        ]

    @property
    def best(self) -> str:
        """The recipe with the highest mean AP on hidden classes; of equal ones the first."""
        return max(self.outcomes, key=lambda recipe: _mean(self.hidden_ap(recipe)))

    def hidden_objects(self, recipe: str) -> ObjectQuality:
        """The objects of hidden classes of all folds."""
        parts = []
        for outcome in self.outcomes[recipe]:
            objects = outcome.objects
            parts.append(objects[np.isin(objects.classes, outcome.hidden)])
        return ObjectQuality.cat(parts)


def cross_validate(
    detector: FrozenDetector,
    cache: RoiCache,
    measured: Sequence[MeasuredImage],
    annotations: AnnotatedImages,
    *,
    recipes: Mapping[str, Recipe],
    folds: Sequence[Sequence[int]],
    schedule: Schedule,
    folder: Path,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[Iterable[int], str], Iterable[int]] = lambda steps, title: steps,
) -> CrossValidation:
    """
    Train each recipe on each fold and measure it. An outcome that is in the folder already is not measured
    again.

    Args:
        detector: the frozen detector.
        cache: the training images.
        measured, annotations: the images that masks are measured in.
        recipes: by name.
        folds: class indices; see :func:`balanced_folds`.
        schedule: the length of each training.
        folder: for the outcomes.
        seed: of the trainings.
        device: name of a torch device.
        progress: wraps the steps of a training, given its title.
    """
    folder.mkdir(parents=True, exist_ok=True)
    outcomes: dict[str, list[Outcome]] = {name: [] for name in recipes}
    for number, hidden in enumerate(folds):
        for name, recipe in recipes.items():
            path = _outcome_file(folder, name, number)
            outcome = _read_outcome(path, hidden)
            if outcome is None:
                title = f"{recipe.title}, fold {number + 1} of {len(folds)}"
                head = train_mask_head(
                    detector,
                    cache,
                    recipe,
                    hidden=hidden,
                    schedule=schedule,
                    seed=seed,
                    device=device,
                    progress=partial(progress, title=title),
                )
                outcome = measure(detector, head, measured, annotations, hidden=hidden, device=device)
                write_text(path, msgspec.json.encode(outcome).decode())
            outcomes[name].append(outcome)
    return CrossValidation(detector.class_names, folds, outcomes)


def trainings_left(folder: Path, recipes: Collection[str], num_folds: int) -> int:
    """Number of trainings of :func:`cross_validate` whose outcome is not in the folder."""
    files = [_outcome_file(folder, name, fold) for name in recipes for fold in range(num_folds)]
    return sum(not path.is_file() for path in files)


def _outcome_file(folder: Path, recipe: str, fold: int) -> Path:
    return folder / f"{recipe}_{fold}.json"


def _read_outcome(path: Path, hidden: Sequence[int]) -> Outcome | None:
    if not path.is_file():
        return None
    try:
        outcome = msgspec.json.decode(path.read_bytes(), type=Outcome)
    except msgspec.MsgspecError as error:
        raise InputError(f"{path} is not an outcome of a cross-validation: {error}") from error
    if outcome.hidden != list(hidden):
        raise InputError(
            f"{path} is of other folds than this run, expected the same: give another output folder"
        )
    return outcome


def _mean(values) -> float:
    known = [value for value in values if value is not None and not math.isnan(value)]
    return fmean(known) if known else math.nan
