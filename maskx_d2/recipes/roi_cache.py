"""
``RoiCache``: what a frozen detector makes of training images, on disk, so that mask heads train in minutes.

The detector sees each image and its mirror image once. Of each, the positive proposals and the ground-truth
boxes are kept, with their features, mask targets and colours.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import torch
from PIL import ImageOps
from torch import Tensor
from torchvision.ops import box_iou, roi_align

from maskx_d2.data.errors import InputError
from maskx_d2.data.files import load_json, write_json
from maskx_d2.inference.frozen_detector import FrozenDetector, SeenImage
from maskx_d2.recipes.annotated_images import AnnotatedImage, digest
from maskx_d2.runtime.checkpoints import write_checkpoint

_DESCRIPTION = "cache.json"
_IMAGES_PER_FILE = 32
_MAX_PROPOSALS, _MAX_OBJECTS = 12, 12  # of an image
_MIN_IOU = 0.5  # of a positive proposal with its object, as in both backends


@dataclass(frozen=True)
class Rois:
    """R RoIs of one image or of several."""

    features: dict[int, Tensor]
    """By side of the RoI feature: (R, C, side, side) float16."""

    boxes: Tensor
    """(R, 4) x0, y0, x1, y1."""

    true_boxes: Tensor
    """(R, 4) boxes of the objects that they are matched to."""

    classes: Tensor
    """(R,) int64 classes of these objects."""

    has_mask: Tensor
    """(R,) bool, whether the object has a mask."""

    is_ground_truth: Tensor
    """(R,) bool, whether the RoI is the box of its object."""

    masks: dict[int, Tensor]
    """By M, twice the side: (R, M, M) uint8, share of each cell that the object's mask covers, of 255."""

    teacher_scores: Tensor
    """(R,) scores of the masks of the objects by a teacher; 0 for none."""

    teacher_masks: dict[int, Tensor]
    """By M: (R, M, M) uint8, as ``masks``."""

    others: dict[int, Tensor]
    """By M: (R, M, M) int16, class of another object whose mask covers most of the cell, or -1."""

    colours: dict[int, Tensor]
    """By M: (R, 3, M, M) uint8 RGB."""

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, chosen: Tensor | slice) -> "Rois":
        return Rois(
            **{
                name: {side: tensor[chosen] for side, tensor in value.items()}
                if isinstance(value, dict)
                else value[chosen]
                for name, value in vars(self).items()
            }
        )

    @staticmethod
    def cat(parts: Sequence["Rois"]) -> "Rois":
        """Concatenate."""
        joined = {}
        for name, value in vars(parts[0]).items():
            values = [getattr(part, name) for part in parts]
            joined[name] = (
                {side: torch.cat([v[side] for v in values]) for side in value}
                if isinstance(value, dict)
                else torch.cat(values)
            )
        return Rois(**joined)


class RoiCache:
    """RoIs of training images and of their mirror images, read from disk when they are used."""

    def __init__(self, folder: Path, num_images: int):
        self._folder = folder
        self._num_images = num_images

    def __len__(self) -> int:
        return self._num_images

    def first(self, num_images: int) -> "RoiCache":
        """The first images."""
        return RoiCache(self._folder, num_images)

    def rois(self, image: int, *, mirrored: bool) -> Rois:
        """The RoIs of an image."""
        rois, ends = self._files[image // _IMAGES_PER_FILE]
        place = 2 * (image % _IMAGES_PER_FILE) + mirrored
        return rois[ends[place - 1] if place else 0 : ends[place]]

    @cached_property
    def _files(self) -> list[tuple[Rois, list[int]]]:
        found = []
        for number in range(math.ceil(self._num_images / _IMAGES_PER_FILE)):
            content = torch.load(_file(self._folder, number), mmap=True, weights_only=True)
            found.append((Rois(**content["rois"]), content["ends"]))
        return found


def fill_cache(
    folder: Path,
    detector: FrozenDetector,
    images: Sequence[AnnotatedImage],
    *,
    sides: Sequence[int],
    seed: int = 0,
    progress: Callable[[Iterable], Iterable] = iter,
) -> RoiCache:
    """
    Compute what is not in the folder yet.

    Args:
        folder: of the cache.
        detector: sees the images.
        images: the training images.
        sides: sides of the RoI features that mask heads take.
        seed: of the choice among more proposals or objects than are kept.
        progress: wraps the numbers of the files that are left to compute, as ``tqdm`` does.

    Raises:
        InputError: the folder has a cache of another detector or of other images.
    """
    description = {
        "detector": detector.fingerprint(),
        "images": [str(image.path) for image in images],
        "annotations": digest(images),
        "sides": sorted(sides),
        "seed": seed,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _DESCRIPTION
    if path.is_file():
        earlier = load_json(path, what="description of a cache")
        for name, value in description.items():
            if earlier.get(name) != value:
                raise InputError(
                    f"{folder} is a cache of other {name}, expected that of the same run: give another "
                    "output folder, or remove it"
                )
    else:
        write_json(path, description)
    starts = range(0, len(images), _IMAGES_PER_FILE)
    missing = [n for n in range(len(starts)) if not _file(folder, n).is_file()]
    for number in progress(missing):
        generator = np.random.default_rng([seed, number])
        parts = []
        for image in images[starts[number] : starts[number] + _IMAGES_PER_FILE]:
            parts += _rois_of_image(detector, image, sides, generator)
        rois = Rois.cat(parts)
        ends = np.cumsum([len(part) for part in parts]).tolist()
        write_checkpoint(_file(folder, number), {"rois": vars(rois), "ends": ends})
    return RoiCache(folder, len(images))


def bytes_per_image(detector: FrozenDetector, image: AnnotatedImage, sides: Sequence[int]) -> int:
    """The most that an image takes in a cache."""
    seen = detector.see(image.read())
    of_roi = 0
    for side in sides:
        features = seen.roi_features(torch.from_numpy(image.boxes[:1]), side)
        of_roi += 2 * features.numel() + (2 * side) ** 2 * 7  # masks, other masks, colours
    return 2 * (_MAX_PROPOSALS + _MAX_OBJECTS) * of_roi


def _file(folder: Path, number: int) -> Path:
    return folder / f"rois_{number:05d}.pt"


def _rois_of_image(
    detector: FrozenDetector, image: AnnotatedImage, sides: Sequence[int], generator: np.random.Generator
) -> list[Rois]:
    """The RoIs of an image, and those of its mirror image."""
    picture = image.read()
    boxes = torch.from_numpy(image.boxes)
    chosen = _some(len(boxes), _MAX_OBJECTS, generator)
    parts = []
    for mirrored in (False, True):
        seen = detector.see(ImageOps.mirror(picture) if mirrored else picture)
        proposals = seen.proposals().cpu()
        if mirrored:  # everything but the features is computed in the image as it is
            proposals = _mirrored_boxes(proposals, image.width)
        overlap, matched = box_iou(proposals, boxes).max(1)
        positive = (overlap >= _MIN_IOU).nonzero()[:, 0]
        positive = positive[_some(len(positive), _MAX_PROPOSALS, generator)]
        rois = torch.cat([proposals[positive], boxes[chosen]])
        instances = torch.cat([matched[positive], chosen])
        parts.append(
            _describe(image, picture, seen, rois, instances, len(positive), sides, mirrored=mirrored)
        )
    return parts


def _describe(
    image: AnnotatedImage,
    picture,
    seen: SeenImage,
    rois: Tensor,
    instances: Tensor,
    num_proposals: int,
    sides: Sequence[int],
    *,
    mirrored: bool,
) -> Rois:
    pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)
    planes = {i: torch.from_numpy(image.mask(i))[None] for i in image.with_mask}
    taught = {
        i: torch.from_numpy(mask_util.decode(mask))[None]
        for i, mask in enumerate(image.teacher_masks)
        if mask is not None
    }
    features, masks, teacher_masks, others, colours = {}, {}, {}, {}, {}
    flip = (lambda x: x.flip(-1)) if mirrored else (lambda x: x)
    for side in sides:
        of_model = _mirrored_boxes(rois, image.width) if mirrored else rois
        features[side] = seen.roi_features(of_model, side).half().cpu()
        m = 2 * side
        masks[m] = torch.zeros(len(rois), m, m, dtype=torch.uint8)
        teacher_masks[m] = torch.zeros_like(masks[m])
        others[m] = torch.full((len(rois), m, m), -1, dtype=torch.int16)
        colours[m] = torch.zeros(len(rois), 3, m, m, dtype=torch.uint8)
        for r, (box, own) in enumerate(zip(rois, instances.tolist(), strict=True)):
            colours[m][r] = flip(average_to_cells(pixels, box, m)).round()
            if own in taught:
                teacher_masks[m][r] = (flip(average_to_cells(taught[own], box, m)[0]) * 255).round()
            for i, plane in planes.items():
                if i != own and not _overlap(box, image.boxes[i]):
                    continue
                covered = flip(average_to_cells(plane, box, m)[0])
                if i == own:
                    masks[m][r] = (covered * 255).round()
                else:
                    others[m][r][covered >= 0.5] = int(image.classes[i])
    boxes, true_boxes = rois, torch.from_numpy(image.boxes)[instances]
    if mirrored:
        boxes, true_boxes = (_mirrored_boxes(x, image.width) for x in (boxes, true_boxes))
    return Rois(
        features=features,
        boxes=boxes,
        true_boxes=true_boxes,
        classes=torch.from_numpy(image.classes)[instances],
        has_mask=torch.tensor([image.masks[i] is not None for i in instances.tolist()], dtype=torch.bool),
        is_ground_truth=torch.arange(len(rois)) >= num_proposals,
        masks=masks,
        teacher_scores=torch.from_numpy(image.teacher_scores)[instances],
        teacher_masks=teacher_masks,
        others=others,
        colours=colours,
    )


def average_to_cells(planes: Tensor, box: Tensor, side: int) -> Tensor:
    """
    Average planes of an image over the cells of a box.

    Args:
        planes: (C, H, W) uint8.
        box: (4,) x0, y0, x1, y1 in pixels.
        side: number of cells in each direction.

    Returns:
        (C, side, side) float32; outside of the image it is 0.
    """
    height, width = planes.shape[1:]
    x0, y0 = (max(math.floor(v) - 1, 0) for v in box[:2].tolist())
    x1, y1 = (math.ceil(v) + 1 for v in box[2:].tolist())
    # Only the part that is needed becomes floating point.
    part = planes[:, y0 : min(y1, height), x0 : min(x1, width)].float()
    shifted = box.float() - torch.tensor([x0, y0, x0, y0], dtype=torch.float32)
    return roi_align(part[None], [shifted[None]], side, aligned=True)[0]


def _mirrored_boxes(boxes: Tensor, width: int) -> Tensor:
    return torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)


def _overlap(a: Tensor, b: np.ndarray) -> bool:
    return bool(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3])


def _some(number: int, most: int, generator: np.random.Generator) -> Tensor:
    """Sorted indices, at most ``most`` of them."""
    order = generator.permutation(number)[:most]
    return torch.from_numpy(np.sort(order)).long()
