"""Masks of objects whose boxes and classes are known, image by image."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image

from maskx_d2.data.errors import InputError
from maskx_d2.data.images import MAX_MEGAPIXELS, read_ahead, size_difference
from maskx_d2.inference.detector import KnownObjects, MaskPredictor, PredictedMask

_Piece = tuple[Image.Image, list[int], KnownObjects]
_MOST_AT_ONCE = 100  # objects of an image: each has a mask of the image's size


@dataclass(frozen=True)
class BoxesOfImage:
    """The objects of an image that are to get masks."""

    path: str
    """Path of the image file."""

    width: int
    """In pixels, as in the annotation file."""

    height: int
    annotation_ids: list[int]
    objects: KnownObjects


class FoundMasks(msgspec.Struct, tag=True):
    """The masks of some annotations."""

    masks: dict[int, PredictedMask | None]
    """By annotation id; None where the box is too small for a mask."""


class UnreadImage(msgspec.Struct, tag=True):
    """An image that cannot be read."""

    reason: str
    num_objects: int


def find_masks(
    predictor: MaskPredictor,
    of_images: Sequence[BoxesOfImage],
    *,
    batch_size: int = 4,
    max_megapixels: float = MAX_MEGAPIXELS,
    progress: Callable[[Sequence], Iterable] = iter,
) -> Iterator[FoundMasks | UnreadImage]:
    """
    Predict masks in known boxes.

    Args:
        predictor: the model.
        of_images: the images with their objects.
        batch_size: number of images per call of the model.
        max_megapixels: larger images are refused.
        progress: wraps the images, as ``tqdm`` does.

    Raises:
        ValueError: the model has no mask head.
    """
    paths = (Path(of_image.path) for of_image in of_images)
    ahead = read_ahead(paths, max_megapixels=max_megapixels)
    images = (
        (of_image, reading.result)
        for of_image, (_, reading) in zip(progress(of_images), ahead, strict=True)
    )
    yield from masks_in_images(predictor, images, batch_size=batch_size)


def masks_in_images(
    predictor: MaskPredictor,
    images: Iterable[tuple[BoxesOfImage, Callable[[], Image.Image]]],
    *,
    batch_size: int,
) -> Iterator[FoundMasks | UnreadImage]:
    """
    Like :func:`find_masks`, for images that are read elsewhere.

    Args:
        images: images, each with a function that returns its pixels or raises like
            :func:`maskx_d2.data.images.read_image`.
    """
    pieces: list[_Piece] = []
    for of_image, read in images:
        size = {"width": of_image.width, "height": of_image.height}
        try:
            image = read()
            if difference := size_difference(image.size, size):
                raise InputError(f"{of_image.path} {difference}")
        except InputError as error:
            yield UnreadImage(str(error), len(of_image.annotation_ids))
            continue
        for start in range(0, len(of_image.annotation_ids), _MOST_AT_ONCE):
            part = slice(start, start + _MOST_AT_ONCE)
            objects = KnownObjects(of_image.objects.boxes[part], of_image.objects.category_ids[part])
            pieces.append((image, of_image.annotation_ids[part], objects))
            if len(pieces) == batch_size:
                yield _predict(predictor, pieces)
                pieces = []
    if pieces:
        yield _predict(predictor, pieces)


def _predict(predictor: MaskPredictor, pieces: list[_Piece]) -> FoundMasks:
    images, annotation_ids, objects = zip(*pieces, strict=True)
    found = predictor.masks_in_boxes(images, objects)
    return FoundMasks(
        {
            annotation_id: mask
            for ids, masks, of_image in zip(annotation_ids, found, objects, strict=True)
            for annotation_id, mask in zip(ids, _calibrated(predictor, masks, of_image), strict=True)
        }
    )


def _calibrated(
    predictor: MaskPredictor, masks: Sequence[PredictedMask | None], objects: KnownObjects
) -> list[PredictedMask | None]:
    if predictor.calibration is None:
        return list(masks)
    boxes = np.array(objects.boxes, dtype=float).reshape(-1, 4)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    scores = predictor.calibration(np.array([mask.score if mask else 0.0 for mask in masks]), areas)
    return [mask and replace(mask, score=s) for mask, s in zip(masks, scores.tolist(), strict=True)]
