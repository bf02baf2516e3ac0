"""``PartiallySupervisedCoco``: images and targets of a COCO JSON in which some annotations have no mask."""

from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import torch
from pycocotools.coco import COCO
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from maskx_d2.data.images import read_image, size_difference
from maskx_d2.hosts.torchvision.roi_heads import Target

Sample = tuple[torch.Tensor, Target]


class PartiallySupervisedCoco(Dataset):
    """
    Samples are what torchvision's detection models take, an image and a target with ``boxes``,
    ``labels`` (1 to K in the order of the category ids; 0 is the background), ``masks``, ``has_mask``
    and ``image_id``. An instance has a mask if its annotation has a ``segmentation`` and its class is in
    ``with_masks``; the mask of one that has not is empty. Crowd regions are left out.
    """

    def __init__(
        self,
        coco: COCO,
        image_root: Path,
        *,
        with_masks: Collection[int] | None = None,
        transforms: Callable[[Sample], Sample] | None = None,
        annotated_only: bool = False,
    ):
        """
        Args:
            coco: the annotations.
            image_root: the folder that their file names are relative to.
            with_masks: contiguous indices of the classes whose masks may be used; None for all.
            transforms: torchvision's v2 transforms.
            annotated_only: whether to leave out images without an object, as in training.
        """
        if not image_root.is_dir():
            raise FileNotFoundError(f"image folder {image_root} is no folder")
        self.coco = coco
        self.image_root = image_root
        self.transforms = transforms
        category_ids = sorted(coco.cats)
        self._label_of = {category_id: i + 1 for i, category_id in enumerate(category_ids)}
        allowed = range(len(category_ids)) if with_masks is None else with_masks
        self._ids_with_masks = {category_ids[i] for i in allowed}
        self.image_ids = sorted(coco.imgs)
        if annotated_only:
            self.image_ids = [image_id for image_id in self.image_ids if self._annotations(image_id)]

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Sample:
        image_id = self.image_ids[index]
        record = self.coco.imgs[image_id]
        path = self.image_root / record["file_name"]
        image = v2.functional.to_image(read_image(path))
        height, width = image.shape[-2:]
        if difference := size_difference((width, height), record):
            raise ValueError(f"{path} {difference}")
        annotations = self._annotations(image_id)
        boxes = torch.tensor([a["bbox"] for a in annotations], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        has_mask = [self._has_mask(annotation) for annotation in annotations]
        masks = np.zeros((len(annotations), height, width), dtype=np.uint8)
        for mask, annotation, present in zip(masks, annotations, has_mask, strict=True):
            if present:
                mask[:] = self.coco.annToMask(annotation)
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
            "labels": torch.tensor(
                [self._label_of[a["category_id"]] for a in annotations], dtype=torch.int64
            ),
            "masks": tv_tensors.Mask(torch.from_numpy(masks)),
            "has_mask": torch.tensor(has_mask, dtype=torch.bool),
            "image_id": torch.tensor(image_id),
        }
        sample = image, target
        return sample if self.transforms is None else self.transforms(sample)

    def _annotations(self, image_id: int) -> list[dict]:
        return [a for a in self.coco.imgToAnns[image_id] if not a.get("iscrowd", 0)]

    def _has_mask(self, annotation: dict) -> bool:
        return bool(annotation.get("segmentation")) and annotation["category_id"] in self._ids_with_masks


def training_transforms() -> v2.Transform:
    """
    Horizontal flips; boxes inside the image, none of less than a pixel (torchvision's limit; Detectron2 has
    none); float images in [0, 1].
    """
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.ClampBoundingBoxes(),
            v2.SanitizeBoundingBoxes(labels_getter=_of_each_box),
            v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
            v2.ToPureTensor(),
        ]
    )


def evaluation_transforms() -> v2.Transform:
    """Float images in [0, 1]."""
    return v2.Compose(
        [v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True), v2.ToPureTensor()]
    )


def _of_each_box(sample: Sample) -> tuple[torch.Tensor, torch.Tensor]:
    """What has to go, beside its mask, with a box that is removed."""
    target = sample[1]
    return target["labels"], target["has_mask"]
