"""``Study``: the steps of ``maskx cross-validate``, from an annotation file to a recipe and a model."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from maskx_d2.data.errors import InputError
from maskx_d2.data.files import load_json, write_json
from maskx_d2.inference.frozen_detector import FrozenDetector, MaskHead
from maskx_d2.inference.mask_scores import ScoreCalibration
from maskx_d2.method import HOURGLASSES, Recipe, Schedule, expected_iou
from maskx_d2.recipes.annotated_images import AnnotatedImages, read_annotated_images, split_images
from maskx_d2.recipes.cross_validation import CrossValidation, cross_validate, trainings_left
from maskx_d2.recipes.folds import balanced_folds, classes_to_measure
from maskx_d2.recipes.measurement import (
    MeasuredImage,
    mask_probabilities,
    masks_of_teacher,
    see_measured,
)
from maskx_d2.recipes.roi_cache import RoiCache, bytes_per_image, fill_cache
from maskx_d2.recipes.training import train_mask_head

_ROI_SIDE, _HOURGLASS_ROI_SIDE = 14, 32

Progress = Callable[[Iterable, str], Iterable]
"""Wraps items that take time, given a title."""


@dataclass(frozen=True)
class Study:
    """A detector, the images that it has seen, and the recipes to compare on them."""

    detector: FrozenDetector
    folder: Path
    recipes: Mapping[str, Recipe]
    folds: Sequence[Sequence[int]]
    schedule: Schedule
    train: AnnotatedImages
    held_out: AnnotatedImages
    cache: RoiCache
    """The training images, followed by the others."""

    measured: Sequence[MeasuredImage]
    seed: int
    device: str

    @classmethod
    def prepare(
        cls,
        detector: FrozenDetector,
        annotations: Path,
        images: Path,
        folder: Path,
        *,
        recipes: Mapping[str, Recipe],
        num_folds: int,
        schedule: Schedule,
        num_images: int | None = None,
        measured_share: float = 0.25,
        cache_bytes: int = 20 * 10**9,
        teacher: Path | None = None,
        seed: int = 0,
        device: str = "cpu",
        progress: Progress = lambda items, title: items,
    ) -> "Study":
        """
        Read the annotations, choose the folds, and let the detector see the images.

        Args:
            detector: the frozen detector.
            annotations: annotation file in COCO format.
            images: the folder of its images.
            folder: output folder.
            recipes: by name.
            num_folds: number of folds of the classes that have masks.
            schedule: the length of each training.
            num_images: number of images to use; None for all.
            measured_share: share of them that masks are measured in.
            cache_bytes: fewer images are used if their cache would be larger.
            teacher: the annotations with masks by a teacher, see :func:`read_annotated_images`.
            seed: random seed.
            device: name of a torch device.
            progress: see :data:`Progress`.

        Raises:
            FileNotFoundError: a file does not exist.
            InputError: the annotations have other classes than the detector, too few classes with masks or
                too few images, or the folder holds other results.
        """
        everything = read_annotated_images(annotations, images, detector.class_names, teacher=teacher)
        sides = sorted({roi_side(recipe) for recipe in recipes.values()})
        if everything.images:
            fitting = int(cache_bytes / bytes_per_image(detector, everything.images[0], sides))
            num_images = min(num_images or fitting, fitting)
        train, held_out = split_images(
            everything, most=num_images, measured_share=measured_share, seed=seed
        )
        folds = balanced_folds(classes_to_measure(train.images, held_out.images), num_folds)
        _check_same_study(folder, recipes, schedule, seed)
        cache = fill_cache(
            folder / "cache",
            detector,
            [*train.images, *held_out.images],
            sides=sides,
            seed=seed,
            progress=lambda files: progress(files, "RoI features"),
        )
        measured = see_measured(
            detector,
            held_out.images,
            sides=sides,
            progress=lambda images: progress(images, "detections"),
        )
        return cls(
            detector=detector,
            folder=folder,
            recipes=recipes,
            folds=folds,
            schedule=schedule,
            train=train,
            held_out=held_out,
            cache=cache,
            measured=measured,
            seed=seed,
            device=device,
        )

    @property
    def steps_left(self) -> int:
        """Number of training steps that are left to do."""
        left = trainings_left(self.folder / "outcomes", self.recipes, len(self.folds))
        return left * self.schedule.steps

    def cross_validate(self, *, progress: Progress = lambda items, title: items) -> CrossValidation:
        """See :func:`maskx_d2.recipes.cross_validation.cross_validate`."""
        result = cross_validate(
            self.detector,
            self.cache.first(len(self.train.images)),
            self.measured,
            self.held_out,
            recipes=self.recipes,
            folds=self.folds,
            schedule=self.schedule,
            folder=self.folder / "outcomes",
            seed=self.seed,
            device=self.device,
            progress=progress,
        )
        if not any(image.teacher_scores.any() for image in self.held_out.images):
            return result
        return replace(result, teacher=masks_of_teacher(self.measured))

    def calibration(self, result: CrossValidation) -> ScoreCalibration:
        """Of the mask scores of the best recipe, fitted on the hidden classes."""
        objects = result.hidden_objects(result.best)
        return ScoreCalibration.fit(objects.scores, objects.ious, objects.areas)

    def train_best(
        self, result: CrossValidation, *, progress: Progress = lambda items, title: items
    ) -> str:
        """
        Train the best recipe on all masks there are, in all images, and write the model into the folder.

        Returns:
            What the command prints: the options of ``maskx predict`` that name the model, and the IoU to
            expect of masks of the objects that have none.
        """
        recipe = self.recipes[result.best]
        head = train_mask_head(
            self.detector,
            self.cache,
            recipe,
            hidden=(),
            schedule=self.schedule,
            seed=self.seed,
            device=self.device,
            progress=lambda steps: progress(steps, f"{recipe.title}, all masks"),
        )
        calibration = self.calibration(result)
        model = head.save(
            self.folder,
            with_masks=self.classes_with_masks,
            by_teacher=self.classes_by_teacher if recipe.teacher else (),
            calibration=calibration,
        )
        lines = [f"The model: maskx predict {model} IMAGES --output DIR"]
        scores = self.scores_without_masks(head, calibration)
        if len(scores):
            lines.append(
                f"By their calibrated scores, masks of the {len(scores)} objects without a mask have a "
                f"mean IoU of {scores.mean():.2f}."
            )
        return "\n".join(lines)

    @torch.no_grad()
    def scores_without_masks(self, head: MaskHead, calibration: ScoreCalibration) -> np.ndarray:
        """
        Calibrated scores of the masks that a head predicts in the boxes of objects without a mask, of which
        the cache has at most some in each image.
        """
        scores = [np.zeros(0)]
        for image in range(len(self.cache)):
            rois = self.cache.rois(image, mirrored=False)
            chosen = rois[rois.is_ground_truth & ~rois.has_mask]
            if len(chosen) == 0:
                continue
            found = mask_probabilities(head, chosen.features, chosen.classes, self.device)
            sizes = chosen.boxes[:, 2:] - chosen.boxes[:, :2]
            scores.append(calibration(expected_iou(found).numpy(), sizes.prod(1).numpy()))
        return np.concatenate(scores)

    def summary(self) -> str:
        """What the study uses, in a sentence or two."""
        count = sum(map(len, self.folds))
        return (
            f"{len(self.train.images)} images to train on, {len(self.held_out.images)} to measure masks "
            f"in; {count} of {len(self.detector.class_names)} classes have masks and are hidden in "
            f"{len(self.folds)} folds; {len(self.recipes)} recipes"
        )

    @property
    def classes_with_masks(self) -> list[int]:
        """Indices of the classes that have a mask in any of the images."""
        images = (*self.train.images, *self.held_out.images)
        return sorted({int(i) for image in images for i in image.classes[image.with_mask]})

    @property
    def classes_by_teacher(self) -> list[int]:
        """Indices of the other classes that have a mask by a teacher in any of them."""
        images = (*self.train.images, *self.held_out.images)
        taught = {int(i) for image in images for i in image.classes[image.teacher_scores > 0]}
        return sorted(taught - set(self.classes_with_masks))


def roi_side(recipe: Recipe) -> int:
    """Side of the RoI features that the mask heads of a recipe take."""
    return _HOURGLASS_ROI_SIDE if recipe.trunk in HOURGLASSES else _ROI_SIDE


def _check_same_study(folder: Path, recipes: Mapping[str, Recipe], schedule: Schedule, seed: int) -> None:
    """Outcomes in the folder must be those of the same trainings."""
    description = {
        "schedule": vars(schedule),
        "seed": seed,
        "recipes": {name: _plain(recipe) for name, recipe in recipes.items()},
    }
    path = folder / "outcomes" / "study.json"
    if path.is_file():
        earlier = load_json(path, what="description of a cross-validation")
        for name in ("schedule", "seed"):
            if earlier.get(name) != description[name]:
                raise InputError(
                    f"{folder} has results with {name} {earlier.get(name)}, expected {description[name]}: "
                    "give another output folder, or remove it"
                )
        for name, recipe in earlier.get("recipes", {}).items():
            if description["recipes"].setdefault(name, recipe) != recipe:
                raise InputError(
                    f"{folder} has results of another recipe {name!r}: give another output folder, or "
                    "remove it"
                )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, description)


def _plain(recipe: Recipe) -> dict:
    return {**vars(recipe), "box_supervision": dict(recipe.box_supervision)}
