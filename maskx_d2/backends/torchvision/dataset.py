"""``PartiallySupervisedCoco``: images and targets of a COCO JSON in which some annotations have no mask."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pycocotools.mask as mask_util
import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from maskx_d2.backends.torchvision.roi_heads import Target
from maskx_d2.data.coco_format import Annotation, CocoFile, Image
from maskx_d2.data.errors import InputError, MissingFileError
from maskx_d2.data.images import MAX_MEGAPIXELS, read_image, size_difference
from maskx_d2.data.records import Records
from maskx_d2.data.rle import compressed

Sample = tuple[torch.Tensor, Target]


def read_records(
    file: CocoFile, *, with_masks: Collection[int] | None = None, annotated_only: bool = False
) -> Records:
    """
    The content of an annotation file that :class:`PartiallySupervisedCoco` needs.

    Args:
        file: the annotations.
        with_masks: contiguous indices of the classes whose masks may be used; None for all.
        annotated_only: whether to leave out images without an object, as in training.
    """
    category_ids = [category["id"] for category in file.categories]
    label_of = {category_id: i + 1 for i, category_id in enumerate(category_ids)}
    allowed = {category_ids[i] for i in (range(len(category_ids)) if with_masks is None else with_masks)}

    def record(image: Image, objects: list[Annotation]) -> _Record:
        return _Record(
            image=image,
            boxes=np.array([a.bbox for a in objects], dtype=np.float32).reshape(-1, 4),
            labels=np.array([label_of[a.category_id] for a in objects], dtype=np.int64),
            masks=[a.mask if a.category_id in allowed else None for a in objects],
            teacher_masks=[a.teacher_mask for a in objects],
            teacher_scores=np.array([a.teacher_score for a in objects], dtype=np.float32),
        )

    objects = ((i, [a for a in of_image if not a.iscrowd]) for i, of_image in file.by_image())
    return Records.of(record(i, kept) for i, kept in objects if kept or not annotated_only)


class PartiallySupervisedCoco(Dataset):
    """
    A dataset for torchvision's detection models. A sample is an image and a target with ``boxes``,
    ``labels`` (1 to K in the order of the category ids; 0 is the background), ``masks`` of those instances
    that have one, ``mask_index`` (the row of each instance in ``masks``, -1 without one), ``has_mask``,
    ``teacher_score`` and ``image_id``. An instance has a mask if its annotation has a ``segmentation`` and
    the masks of its class may be used. Otherwise it has the mask of a teacher, if there is one with a
    score above 0. Crowd regions are left out.
    """

    def __init__(
        self,
        records: Records,
        image_root: Path,
        *,
        transforms: Callable[[Sample], Sample] | None = None,
        max_megapixels: float = MAX_MEGAPIXELS,
    ):
        """
        Args:
            records: as returned by :func:`read_records`.
            image_root: the folder that their file names are relative to.
            transforms: torchvision's v2 transforms.
            max_megapixels: larger images are refused.
        """
        if not image_root.is_dir():
            raise MissingFileError(f"image folder {image_root} is not a folder")
        self.image_root = image_root
        self.transforms = transforms
        self.max_megapixels = max_megapixels
        # Tensors, because worker processes that are not forked can share nothing else.
        self._content, self._ends = torch.from_numpy(records.content), torch.from_numpy(records.ends)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Sample:
        record = Records(self._content.numpy(), self._ends.numpy())[index]
        path = self.image_root / record.image.file_name
        image = v2.functional.to_image(read_image(path, max_megapixels=self.max_megapixels))
        height, width = image.shape[-2:]
        if difference := size_difference((width, height), msgspec.structs.asdict(record.image)):
            raise InputError(f"{path} {difference}")
        boxes = torch.from_numpy(record.boxes)
        boxes[:, 2:] += boxes[:, :2]
        has_mask = np.array([mask is not None for mask in record.masks], dtype=bool)
        pairs = zip(record.masks, record.teacher_masks, strict=True)
        of_boxes = [teacher_mask if mask is None else mask for mask, teacher_mask in pairs]
        is_there = np.array([mask is not None for mask in of_boxes], dtype=bool)
        masks = np.empty((is_there.sum(), height, width), dtype=np.uint8)
        for pixels, mask in zip(masks, (m for m in of_boxes if m is not None), strict=True):
            pixels[:] = mask_util.decode(compressed(mask, height, width))
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
            "labels": torch.from_numpy(record.labels),
            "masks": tv_tensors.Mask(torch.from_numpy(masks)),
            "mask_index": torch.from_numpy(np.where(is_there, np.cumsum(is_there) - 1, -1)),
            "has_mask": torch.from_numpy(has_mask),
            "teacher_score": torch.from_numpy(np.where(has_mask, np.float32(0), record.teacher_scores)),
            "image_id": torch.tensor(record.image.id),
        }
        sample = image, target
        return sample if self.transforms is None else self.transforms(sample)


class _Record(NamedTuple):
    """The data that are kept of an image and its N objects."""

    image: Image
    boxes: np.ndarray
    """(N, 4) float32, XYWH."""

    labels: np.ndarray
    """(N,) int64."""

    masks: list
    """Polygons, RLE, or None if there is no mask or it may not be used."""

    teacher_masks: list
    """The same for masks by a teacher."""

    teacher_scores: np.ndarray
    """(N,) float32; 0 without a mask by a teacher."""


def training_transforms() -> v2.Transform:
    """Horizontal flips, and boxes clipped to the image. Images stay bytes."""
    return v2.Compose([v2.RandomHorizontalFlip(), v2.ClampBoundingBoxes(), v2.ToPureTensor()])
