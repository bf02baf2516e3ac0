"""Folds of classes for cross-validation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from maskx_d2.data.errors import InputError
from maskx_d2.recipes.annotated_images import AnnotatedImage


@dataclass(frozen=True)
class ClassOfObjects:
    """The objects of a class that have a mask."""

    num_objects: int
    median_area: float
    """Of their boxes, in pixels."""


def classes_to_measure(
    train: Sequence[AnnotatedImage], measured: Sequence[AnnotatedImage]
) -> dict[int, ClassOfObjects]:
    """The classes that have masks among the training images and among those that masks are measured in."""
    of_train, of_measured = _areas_by_class(train), _areas_by_class(measured)
    return {
        index: ClassOfObjects(len(areas), float(np.median(areas)))
        for index, areas in sorted(of_train.items())
        if index in of_measured
    }


def balanced_folds(classes: Mapping[int, ClassOfObjects], num_folds: int) -> list[list[int]]:
    """
    Distribute classes over folds, so that each fold has about as many objects of each size as the others.
    Neighbours in the order of sizes go to different folds; among these, the class with most objects goes to
    the fold that has the fewest so far.

    Args:
        classes: by class index.
        num_folds: number of folds, from 2 to the number of classes.

    Raises:
        InputError: there are fewer than two classes, or fewer classes than folds.
    """
    if not classes:
        raise InputError("no class has masks to measure, expected at least 2 classes with masks")
    if len(classes) < 2:
        raise InputError(
            "only one class has masks: hiding them leaves none to learn from, expected at least 2 classes"
        )
    if not 2 <= num_folds <= len(classes):
        raise InputError(
            f"--folds is {num_folds}, expected 2 to {len(classes)}, the number of classes with masks"
        )
    by_size = sorted(classes, key=lambda index: classes[index].median_area)
    folds: list[list[int]] = [[] for _ in range(num_folds)]
    objects = [0] * num_folds
    for start in range(0, len(by_size), num_folds):
        group = sorted(by_size[start : start + num_folds], key=lambda i: -classes[i].num_objects)
        order = sorted(range(num_folds), key=lambda fold: (len(folds[fold]), objects[fold]))
        for index, fold in zip(group, order, strict=False):
            folds[fold].append(index)
            objects[fold] += classes[index].num_objects
    return [sorted(fold) for fold in folds]


def _areas_by_class(images: Sequence[AnnotatedImage]) -> dict[int, list[float]]:
    areas: dict[int, list[float]] = {}
    for image in images:
        for box, index, mask in zip(image.boxes, image.classes.tolist(), image.masks, strict=True):
            if mask is not None:
                areas.setdefault(index, []).append(float((box[2] - box[0]) * (box[3] - box[1])))
    return areas
