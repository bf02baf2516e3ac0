"""How good masks are: IoU in ground-truth boxes, and mask AP of the detector's own detections."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch
from torch import Tensor

from maskx_d2.data.rle import overlap
from maskx_d2.inference.frozen_detector import FoundObjects, FrozenDetector, MaskHead
from maskx_d2.method import expected_iou
from maskx_d2.recipes.annotated_images import AnnotatedImage

_MIN_SCORE, _MAX_DETECTIONS = 0.05, 50  # of an image
_ROIS_AT_ONCE = 128


@dataclass(frozen=True)
class MeasuredImage:
    """An image that masks are measured in, as the detector sees it."""

    image: AnnotatedImage
    found: FoundObjects
    truth_features: dict[int, Tensor]
    """By side: (N, C, side, side) float16, of the objects that have a mask."""

    found_features: dict[int, Tensor]

    @property
    def with_mask(self) -> list[int]:
        """Indices of the objects that have a mask."""
        return self.image.with_mask


def see_measured(
    detector: FrozenDetector,
    images: Sequence[AnnotatedImage],
    *,
    sides: Sequence[int],
    progress: Callable[[Iterable], Iterable] = iter,
) -> list[MeasuredImage]:
    """Run the detector on images in which masks will be measured."""
    seen_images = []
    for image in progress(images):
        seen = detector.see(image.read())
        found = seen.detections()
        best = (found.scores >= _MIN_SCORE).nonzero()[:, 0][:_MAX_DETECTIONS]
        found = FoundObjects(found.boxes[best].cpu(), found.classes[best].cpu(), found.scores[best].cpu())
        boxes = torch.from_numpy(image.boxes[image.with_mask])
        seen_images.append(
            MeasuredImage(
                image=image,
                found=found,
                truth_features={s: seen.roi_features(boxes, s).half().cpu() for s in sides},
                found_features={s: seen.roi_features(found.boxes, s).half().cpu() for s in sides},
            )
        )
    return seen_images


@dataclass(frozen=True)
class ObjectQuality:
    """The masks of N objects in their ground-truth boxes."""

    classes: np.ndarray
    """(N,) class indices."""

    areas: np.ndarray
    """(N,) areas of the boxes in pixels."""

    ious: np.ndarray
    """(N,) IoU with the true masks."""

    scores: np.ndarray
    """(N,) the expected IoU, see :func:`maskx_d2.method.expected_iou`."""

    def __getitem__(self, chosen: np.ndarray) -> "ObjectQuality":
        return ObjectQuality(*(values[chosen] for values in vars(self).values()))

    def mean_iou(self, classes: Sequence[int]) -> float:
        """Mean over classes of the mean IoU of their objects; NaN if there are none."""
        of_classes = [self.ious[self.classes == c] for c in classes]
        means = [float(ious.mean()) for ious in of_classes if len(ious)]
        return fmean(means) if means else math.nan

    @staticmethod
    def cat(parts: Sequence["ObjectQuality"]) -> "ObjectQuality":
        """Concatenate."""
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return ObjectQuality(*map(np.concatenate, columns))


@torch.no_grad()
def masks_in_true_boxes(
    detector: FrozenDetector, head: MaskHead, images: Sequence[MeasuredImage], *, device: str = "cpu"
) -> tuple[ObjectQuality, list[dict]]:
    """
    Predict the masks of the objects that have one, in their boxes, and compare them.

    Returns:
        The objects, and their predicted masks as compressed RLE.
    """
    classes, areas, ious, scores, masks = [], [], [], [], []
    for seen in images:
        chosen = seen.with_mask
        if not chosen:
            continue
        of_image = torch.from_numpy(seen.image.classes[chosen])
        boxes = torch.from_numpy(seen.image.boxes[chosen])
        probabilities = mask_probabilities(head, seen.truth_features, of_image, device)
        found = detector.masks_as_rle(probabilities, boxes, (seen.image.height, seen.image.width))
        truth = [seen.image.masks[place] for place in chosen]
        ious += map(overlap, found, truth)
        masks += found
        classes.append(of_image.numpy())
        areas.append(((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).numpy())
        scores.append(expected_iou(probabilities).numpy())
    objects = ObjectQuality(
        np.concatenate(classes), np.concatenate(areas), np.array(ious), np.concatenate(scores)
    )
    return objects, masks


def masks_of_teacher(images: Sequence[MeasuredImage]) -> ObjectQuality:
    """The masks of a teacher, of the objects that have a true one; 0 where the teacher has none."""
    classes, areas, ious, scores = [], [], [], []
    for image in (seen.image for seen in images):
        for index in image.with_mask:
            predicted = image.teacher_masks[index]
            x0, y0, x1, y1 = image.boxes[index].tolist()
            classes.append(image.classes[index])
            areas.append((x1 - x0) * (y1 - y0))
            ious.append(0.0 if predicted is None else overlap(predicted, image.masks[index]))
            scores.append(image.teacher_scores[index])
    return ObjectQuality(np.array(classes), np.array(areas), np.array(ious), np.array(scores))


@torch.no_grad()
def mask_results(
    detector: FrozenDetector,
    head: MaskHead,
    images: Sequence[MeasuredImage],
    *,
    category_ids: Sequence[int],
    device: str = "cpu",
) -> list[dict]:
    """The detector's detections with masks, in COCO's results format."""
    results = []
    for seen in images:
        found = seen.found
        probabilities = mask_probabilities(head, seen.found_features, found.classes, device)
        masks = detector.masks_as_rle(probabilities, found.boxes, (seen.image.height, seen.image.width))
        for mask, c, score in zip(masks, found.classes.tolist(), found.scores.tolist(), strict=True):
            results.append(
                {
                    "image_id": seen.image.id,
                    "category_id": category_ids[c],
                    "score": score,
                    "segmentation": mask,
                }
            )
    return results


def mask_probabilities(head: MaskHead, features: dict[int, Tensor], classes: Tensor, device: str) -> Tensor:
    """Features by side and (N,) classes -> (N, M, M) probabilities on the CPU, some RoIs at a time."""
    of_head = features[head.roi_side]
    parts = [
        head(x.float().to(device), c.to(device)).sigmoid().cpu()
        for x, c in zip(of_head.split(_ROIS_AT_ONCE), classes.split(_ROIS_AT_ONCE), strict=True)
    ]
    return torch.cat(parts)
