"""``AnnotatedImage``: an image and its objects, with the classes in the order of a detector."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np
import pycocotools.mask as mask_util
from PIL import Image as PillowImage
from pycocotools.coco import COCO

from maskx_d2.data.class_names import match_classes
from maskx_d2.data.coco_file import read_coco_file
from maskx_d2.data.coco_format import Annotation, CocoFile
from maskx_d2.data.errors import InputError
from maskx_d2.data.images import check_images_exist, read_image, size_difference
from maskx_d2.data.pycocotools_coco import index_coco
from maskx_d2.data.rle import compressed


@dataclass(frozen=True)
class AnnotatedImage:
    """An image and its N objects. Crowd regions are left out."""

    id: int
    path: Path
    width: int
    height: int
    boxes: np.ndarray
    """(N, 4) float32, x0, y0, x1, y1 in pixels."""

    classes: np.ndarray
    """(N,) int64 class indices."""

    masks: list[Mapping | None]
    """Compressed RLE; None for a box only."""

    teacher_masks: list[Mapping | None]
    """The same for masks by a teacher, of objects with and without a mask of their own."""

    teacher_scores: np.ndarray
    """(N,) float32 scores of these masks; 0 for none."""

    @property
    def with_mask(self) -> list[int]:
        """Indices of the objects that have a mask."""
        return [i for i, mask in enumerate(self.masks) if mask is not None]

    def read(self) -> PillowImage.Image:
        """
        Raises:
            FileNotFoundError, InputError: the file cannot be read, or has another size.
        """
        image = read_image(self.path)
        if difference := size_difference(image.size, {"width": self.width, "height": self.height}):
            raise InputError(f"{self.path} {difference}")
        return image

    def mask(self, index: int) -> np.ndarray:
        """(height, width) uint8 mask of an object that has one."""
        return mask_util.decode(self.masks[index])


@dataclass(frozen=True)
class AnnotatedImages:
    """The images of an annotation file that have an object, in the order of the file."""

    file: CocoFile
    images: list[AnnotatedImage]
    category_ids: list[int]
    """Category id of each class of the detector, in this file."""

    def some(self, images: Sequence[AnnotatedImage]) -> "AnnotatedImages":
        """Some of the images."""
        return replace(self, images=list(images))

    @cached_property
    def ground_truth(self) -> COCO:
        """The images with their crowd regions, for pycocotools."""
        wanted = {image.id for image in self.images}
        annotations = []
        for image, of_image in self.file.by_image():
            for a in of_image if image.id in wanted else ():
                mask = a.mask and compressed(a.mask, image.height, image.width)
                record = {
                    "id": 1 + len(annotations),  # 0 stands for none in pycocotools
                    "image_id": image.id,
                    "category_id": a.category_id,
                    "bbox": a.bbox,
                    "area": float(mask_util.area(mask)) if mask else a.bbox[2] * a.bbox[3],
                    "iscrowd": int(bool(a.iscrowd)),
                }
                annotations.append({**record, "segmentation": mask} if mask else record)
        images = [msgspec.structs.asdict(image) for image in self.file.images if image.id in wanted]
        return index_coco(
            {"images": images, "annotations": annotations, "categories": self.file.categories}
        )


def read_annotated_images(
    path: Path, folder: Path, class_names: Sequence[str], *, teacher: Path | None = None
) -> AnnotatedImages:
    """
    Args:
        path: annotation file in COCO format.
        folder: the folder of its images.
        class_names: the classes of the detector.
        teacher: the same annotations with masks by a teacher, also of objects that have a mask; those in
            ``path`` itself are not used then.

    Raises:
        FileNotFoundError: a file or an image does not exist.
        InputError: the annotations cannot be used, or have other classes than the detector.
    """
    file = read_coco_file(path)
    places = match_classes(class_names, file.class_names, what=f"annotation file {path}")
    category_ids = [file.categories[place]["id"] for place in places]
    index_of = {category_id: index for index, category_id in enumerate(category_ids)}
    teachers = _teacher_masks(file if teacher is None else read_coco_file(teacher, keep_repeated=True))
    if teacher is not None and not teachers:
        raise InputError(
            f"{teacher} has no mask by a teacher, expected a file that maskx fill-masks --teacher MODEL "
            "--also-replace wrote"
        )
    images = []
    for image, annotations in file.by_image():
        objects = [a for a in annotations if not a.iscrowd]
        if not objects:
            continue
        boxes = np.array([a.bbox for a in objects], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        taught = [teachers.get((image.id, a.id)) for a in objects]
        boxes = boxes.clip(0, [image.width, image.height, image.width, image.height])
        images.append(
            AnnotatedImage(
                id=image.id,
                path=folder / image.file_name,
                width=image.width,
                height=image.height,
                boxes=boxes.astype(np.float32),
                classes=np.array([index_of[a.category_id] for a in objects], np.int64),
                masks=[a.mask and compressed(a.mask, image.height, image.width) for a in objects],
                teacher_masks=[t and compressed(t.teacher_mask, image.height, image.width) for t in taught],
                teacher_scores=np.array([t.teacher_score if t else 0.0 for t in taught], np.float32),
            )
        )
    check_images_exist(image.path for image in images)
    return AnnotatedImages(file, images, category_ids)


def _teacher_masks(file: CocoFile) -> dict[tuple[int, int], Annotation]:
    """(image id, annotation id) -> the annotations with a mask by a teacher."""
    return {(a.image_id, a.id): a for a in file.annotations if a.teacher_mask is not None}


def digest(images: Sequence[AnnotatedImage]) -> str:
    """A hash of the objects of images: their boxes, classes and masks, true and by a teacher."""
    sha = hashlib.sha256()
    for image in images:
        sha.update(image.boxes.tobytes() + image.classes.tobytes() + image.teacher_scores.tobytes())
        for mask in (*image.masks, *image.teacher_masks):
            counts = b"" if mask is None else mask["counts"]
            sha.update(counts.encode() if isinstance(counts, str) else counts)
    return sha.hexdigest()


def split_images(
    annotations: AnnotatedImages, *, most: int | None, measured_share: float, seed: int
) -> tuple[AnnotatedImages, AnnotatedImages]:
    """
    Choose images to train on and images to measure masks in, at random.

    Args:
        annotations: all images.
        most: number of images to use; None for all.
        measured_share: share of them that masks are measured in.
        seed: random seed.

    Raises:
        InputError: there are too few images.
    """
    order = np.random.default_rng(seed).permutation(len(annotations.images))[:most]
    num_measured = round(measured_share * len(order))
    if num_measured < 1 or num_measured == len(order):
        raise InputError(
            f"{len(order)} images with objects are used, expected enough to train on some and to measure "
            "masks in others"
        )
    chosen = [annotations.images[i] for i in order.tolist()]
    return annotations.some(chosen[num_measured:]), annotations.some(chosen[:num_measured])
