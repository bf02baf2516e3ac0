"""``CocoDataModule``: training and validation data from COCO JSON, for Lightning."""

import logging
from collections.abc import Callable, Collection, Iterator
from functools import cached_property
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule
from pycocotools.coco import COCO
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torchvision.transforms import v2

from maskx_d2.backends.torchvision.dataset import (
    PartiallySupervisedCoco,
    Sample,
    read_records,
    training_transforms,
)
from maskx_d2.data import class_splits
from maskx_d2.data.class_names import match_classes
from maskx_d2.data.coco_file import read_categories, read_coco_file
from maskx_d2.data.coco_format import CocoFile, category_names
from maskx_d2.data.errors import InputError
from maskx_d2.data.images import MAX_MEGAPIXELS, check_images_exist
from maskx_d2.data.pycocotools_coco import read_coco
from maskx_d2.data.records import Records
from maskx_d2.data.training_data import TrainingData
from maskx_d2.data.usable_objects import CROWD, NO_OBJECT, crowd_hint
from maskx_d2.runtime.once_per_node import Ranks, load_once_per_node

Batch = tuple[list, list]
"""Images and targets."""


class CocoDataModule(LightningDataModule):
    """Any dataset in COCO format, with the masks that a class split keeps."""

    def __init__(
        self,
        train_json: Path,
        train_images: Path,
        val_json: Path,
        val_images: Path,
        classes_with_masks: str = "all",
        class_split: str = "",
        batch_size: int = 2,
        num_workers: int = 2,
        seed: int = 0,
        max_megapixels: float = MAX_MEGAPIXELS,
        keep_empty: bool = False,
    ):
        """
        Args:
            train_json: annotation file to train on.
            train_images: its image folder.
            val_json: annotation file to evaluate on; all its masks are used.
            val_images: its image folder.
            classes_with_masks: the classes whose masks are used in training: "all", "voc", "nonvoc",
                "E1_A20B60" ... "E5_A60B20", or the path of a text file with one class name per line. It
                removes masks and never adds any.
            class_split: the split that evaluation reports AP on A and B for; that of classes_with_masks
                if empty.
            batch_size: number of images per step and device.
            num_workers: number of data-loading processes per device.
            seed: random seed of the order of the images.
            max_megapixels: larger images are refused.
            keep_empty: whether to train on images without an object too, in which everything is background.
        """
        super().__init__()
        self.train_json, self.train_images = train_json, train_images
        self.val_json, self.val_images = val_json, val_images
        self.split = classes_with_masks
        self.class_split = class_split
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.max_megapixels = max_megapixels
        self.keep_empty = keep_empty

    def setup(self, stage: str) -> None:
        # Done here, where all processes take part. Loading the validation data now shows, before a long
        # training, whether the evaluation has what it needs.
        if stage == "fit":
            self._training  # noqa: B018
        self._validation  # noqa: B018

    @cached_property
    def _training(self) -> tuple[PartiallySupervisedCoco, TrainingData]:
        """Each machine reads the annotations once, and keeps only what is needed."""

        def load() -> tuple[Records, TrainingData]:
            file = read_coco_file(Path(self.train_json))
            with_masks = class_splits.classes_with_masks(self.split, file.class_names)
            records = read_records(file, with_masks=with_masks, annotated_only=not self.keep_empty)
            return records, _count(file, len(records), with_masks, keep_empty=self.keep_empty)

        records, training_data = load_once_per_node(load, self._ranks)
        if self._ranks.rank == 0:
            logging.getLogger(__name__).info("Training on %s: %s", self.train_json, training_data)
        images = Path(self.train_images)
        return self._dataset(records, images, training_transforms()), training_data

    @cached_property
    def _validation(self) -> PartiallySupervisedCoco:
        """Checked to have the same classes and all of its images."""

        def load() -> tuple[Records, None]:
            file = read_coco_file(Path(self.val_json))
            match_classes(self.class_names, file.class_names, what=f"annotation file {self.val_json}")
            check_images_exist(Path(self.val_images) / image.file_name for image in file.images)
            return read_records(file), None

        records, _ = load_once_per_node(load, self._ranks)
        return self._dataset(records, Path(self.val_images), v2.ToPureTensor())

    def _dataset(self, records: Records, images: Path, transforms: Callable) -> PartiallySupervisedCoco:
        return PartiallySupervisedCoco(
            records, images, transforms=transforms, max_megapixels=self.max_megapixels
        )

    @property
    def _ranks(self) -> Ranks:
        trainer = self.trainer
        if trainer is None or trainer.world_size == 1:
            return Ranks()
        return Ranks(trainer.global_rank, trainer.local_rank, trainer.world_size)

    @cached_property
    def val_coco(self) -> COCO:
        """The ground truth, for the process that evaluates."""
        return read_coco(Path(self.val_json))

    @cached_property
    def _categories(self) -> list[dict]:
        return read_categories(Path(self.train_json))

    @property
    def class_names(self) -> list[str]:
        """Names of the K classes in the order of their contiguous indices."""
        return category_names(self._categories)

    @property
    def category_ids(self) -> list[int]:
        """Category id of each class."""
        return [category["id"] for category in self._categories]

    @cached_property
    def val_category_ids(self) -> list[int]:
        """Category id of each class in the validation file, which may number them otherwise."""
        categories = read_categories(Path(self.val_json))
        found = category_names(categories)
        places = match_classes(self.class_names, found, what=f"annotation file {self.val_json}")
        return [categories[place]["id"] for place in places]

    @property
    def has_masks(self) -> bool:
        """Whether there is any mask to train with."""
        return self._training[1].num_masks > 0

    @property
    def num_teacher(self) -> int:
        """Number of masks by a teacher in the training data."""
        return self._training[1].num_teacher

    @property
    def trained_by_teacher(self) -> list[int]:
        """Contiguous indices of the classes that have only masks by a teacher to train with."""
        return list(self._training[1].trained_by_teacher)

    @property
    def num_crowds(self) -> int:
        """Number of crowd regions in the training data."""
        return self._training[1].left_out.get(CROWD, 0)

    @property
    def trained_with_masks(self) -> list[int]:
        """Contiguous indices of the classes that have a mask to train with."""
        return list(self._training[1].trained_with_masks)

    @property
    def evaluated_with_masks(self) -> list[int]:
        """Contiguous indices of A in the split that evaluation reports on."""
        return class_splits.classes_with_masks(self.class_split or self.split, self.class_names)

    def train_dataloader(self) -> DataLoader:
        dataset, _ = self._training
        if len(dataset) == 0:
            hint = crowd_hint(self.num_crowds)
            raise InputError(f"{self.train_json} has no image with an object, expected at least one{hint}")
        trainer = self.trainer
        images_per_step = trainer.accumulate_grad_batches * self.batch_size
        if trainer.max_steps > 0:
            length, start = trainer.max_steps * images_per_step, trainer.global_step * images_per_step
        else:
            length = max(len(dataset) // trainer.world_size, 1)
            # The last step of an epoch has the images that are left.
            epochs, steps = divmod(trainer.global_step, -(-length // images_per_step))
            start = epochs * length + steps * images_per_step
        sampler = ShuffledStream(
            dataset,
            length=length,
            start=start,
            num_replicas=trainer.world_size,
            rank=trainer.global_rank,
            seed=self.seed,
        )
        return self._loader(dataset, sampler=sampler)

    def val_dataloader(self) -> DataLoader:
        return self._loader(self._validation)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Images to floats in [0, 1]. Until they are on the device, they are bytes, a quarter of that."""
        images, targets = batch
        return [v2.functional.to_dtype(image, torch.float32, scale=True) for image in images], targets

    def _loader(self, dataset: Dataset, **kwargs) -> DataLoader:
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=_collate,
            persistent_workers=self.num_workers > 0,
            **kwargs,
        )


def _count(
    file: CocoFile, num_images: int, with_masks: Collection[int], *, keep_empty: bool
) -> TrainingData:
    left_out = {what: n for what, n in file.left_out.items() if what != NO_OBJECT or not keep_empty}
    index_of = {category["id"]: i for i, category in enumerate(file.categories)}
    return TrainingData.count(
        num_images,
        ((index_of[a.category_id], a.mask is not None) for a in file.annotations if not a.iscrowd),
        [index in with_masks for index in range(len(index_of))],
        left_out=left_out,
        teacher_classes=(index_of[a.category_id] for a in file.annotations if a.teacher_mask is not None),
    )


class ShuffledStream(DistributedSampler):
    """
    An endless stream of shuffled passes over a dataset, distributed over the ranks. Epochs can have any
    length, and the stream can start anywhere, to continue an interrupted run.
    """

    def __init__(self, dataset: Dataset, *, length: int, start: int = 0, **kwargs):
        """
        Args:
            dataset: only its length is used.
            length: number of indices in an epoch of one rank.
            start: number of indices that this rank has already had.
            kwargs: ``num_replicas``, ``rank`` and ``seed`` of torch's ``DistributedSampler``.
        """
        super().__init__(dataset, **kwargs)
        self.length = max(length, 1)
        self.position = start

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        size = len(self.dataset)
        drawn, order = -1, []
        for position in range(self.position, (self.position // self.length + 1) * self.length):
            self.position = position + 1
            number, place = divmod(position * self.num_replicas + self.rank, size)
            if number != drawn:
                generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
                drawn, order = number, torch.randperm(size, generator=generator).tolist()
            yield order[place]


def _collate(samples: list[Sample]) -> Batch:
    """Images of different sizes stay a list, as torchvision's models take them."""
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)
