"""COCO's format: the records of an annotation file."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

PARTS = ("images", "annotations", "categories")
MIN_POLYGON = 6  # coordinates of three points
LONGEST_NAME = 1000
TEACHER = "teacher"
"""``segmentation_source`` of masks by a teacher."""

LARGEST = 2**53  # COCOeval keeps ids in float64

_WHOLE = {
    "images": ("id", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "iscrowd"),
    "categories": ("id",),
}

_Id = Annotated[int, msgspec.Meta(gt=-LARGEST, lt=LARGEST)]


class Image(msgspec.Struct, gc=False):
    """The fields that are read; a file may have more."""

    id: _Id
    width: int
    height: int
    file_name: str | None = None
    """See :func:`file_name_of`."""

    coco_url: Any = None


class Annotation(msgspec.Struct, gc=False):
    """The fields that are read; a file may have more. ``UNSET`` stands for a field that is not there."""

    id: _Id
    image_id: int
    category_id: int
    bbox: Annotated[list[float], msgspec.Meta(min_length=4, max_length=4)]
    segmentation: list[list[float]] | dict[str, Any] | UnsetType | None = UNSET
    iscrowd: Any = UNSET
    area: float | UnsetType | None = UNSET
    keypoints: Any = UNSET
    ignore: Any = None
    segmentation_source: Any = None
    """:data:`TEACHER` for a mask by a teacher; see :func:`maskx_d2.data.usable_objects.keep_usable`."""

    mask_score: Any = None
    teacher_mask: Any = None
    """The mask by a teacher, in the form of ``mask``. It is not read from a file."""

    @property
    def teacher_score(self) -> float:
        """The score of the teacher's mask, in [0, 1]; 0 if there is none, and 1 if it has no score."""
        if self.teacher_mask is None:
            return 0.0
        is_score = isinstance(self.mask_score, int | float) and 0 <= self.mask_score <= 1
        return float(self.mask_score) if is_score else 1.0

    @property
    def mask(self) -> list[list[float]] | dict | None:
        """Polygons of three points or more, or RLE; None for a box only."""
        if isinstance(self.segmentation, list):
            return polygons_with_area(self.segmentation) or None
        return self.segmentation or None


class CocoFile(msgspec.Struct, dict=True):
    """An annotation file."""

    images: list[Image]
    """In the order of their ids, as the categories are."""

    categories: list[dict[str, Any]]
    annotations: list[Annotation] | UnsetType = UNSET

    left_out: ClassVar[Mapping[str, int]] = MappingProxyType({})
    """What :func:`maskx_d2.data.usable_objects.keep_usable` found -> number of objects."""

    @property
    def class_names(self) -> list[str]:
        """In the order of the contiguous indices."""
        return category_names(self.categories)

    def keep(self, annotations: list[Annotation]) -> None:
        """Replace the annotations by some of them."""
        self.annotations = annotations
        for name in ("boxes", "image_of", "image_sizes"):
            self.__dict__.pop(name, None)

    @cached_property
    def boxes(self) -> np.ndarray:
        """(number of annotations, 4) float64, XYWH."""
        values = itertools.chain.from_iterable(a.bbox for a in self.annotations)
        return np.fromiter(values, np.float64, 4 * len(self.annotations)).reshape(-1, 4)

    @cached_property
    def image_sizes(self) -> np.ndarray:
        """(number of annotations, 2) float64: width and height of the image, zeros if there is none."""
        sizes = np.array([[i.width, i.height] for i in self.images] + [[0, 0]], np.float64)
        ids = np.array([image.id for image in self.images] + [0], np.int64)
        wanted = np.fromiter((a.image_id for a in self.annotations), np.int64, len(self.annotations))
        exists = (self.image_of < len(self.images)) & (ids[self.image_of] == wanted)
        return np.where(exists[:, None], sizes[self.image_of], 0.0)

    @cached_property
    def image_of(self) -> np.ndarray:
        """(number of annotations,) int64: the index of the annotation's image, if that exists."""
        image_ids = np.fromiter((image.id for image in self.images), np.int64, len(self.images))
        wanted = np.fromiter((a.image_id for a in self.annotations), np.int64, len(self.annotations))
        return np.searchsorted(image_ids, wanted)

    def by_image(self) -> Iterator[tuple[Image, list[Annotation]]]:
        """The images, each with its annotations in the order of the file."""
        order = np.argsort(self.image_of, kind="stable")
        ends = np.cumsum(np.bincount(self.image_of, minlength=len(self.images))).tolist()
        for image, start, end in zip(self.images, [0, *ends], ends, strict=False):
            yield image, [self.annotations[i] for i in order[start:end].tolist()]


def polygons_with_area(polygons: list[list[float]]) -> list[list[float]]:
    """Polygons of three points or more: pycocotools cannot read others."""
    return [polygon for polygon in polygons if len(polygon) >= MIN_POLYGON]


def file_name_of(file_name: object, coco_url: object) -> object:
    """
    Name of an image file, with ``/`` between folders on every system.

    Args:
        file_name: of the image's record.
        coco_url: of the record; its last two parts are the name if there is no ``file_name``, as in LVIS.
    """
    if file_name is None and isinstance(coco_url, str):
        return "/".join(coco_url.split("/")[-2:])
    return file_name.replace("\\", "/") if isinstance(file_name, str) else file_name


def put_in_order(file: CocoFile) -> None:
    """Sort the images by their ids and name their files, in place."""
    file.images.sort(key=lambda image: image.id)
    for image in file.images:
        image.file_name = file_name_of(image.file_name, image.coco_url)


def make_whole(content: dict) -> None:
    """
    Turn ids, sizes and counts such as ``1.0`` into whole numbers, in place. Tables with gaps in a column
    write them so.
    """
    for part, names in _WHOLE.items():
        for record in content.get(part) or ():
            for name in names:
                if isinstance(value := record.get(name), float) and value.is_integer():
                    record[name] = int(value)
            rle = record.get("segmentation")
            for name in ("size", "counts") if isinstance(rle, dict) else ():
                if isinstance(rle.get(name), list):
                    rle[name] = [
                        int(v) if isinstance(v, float) and v.is_integer() else v for v in rle[name]
                    ]


def in_order(categories: Iterable[dict]) -> list[dict]:
    """Categories in the order of their contiguous indices, which is that of their ids."""
    return sorted(categories, key=lambda category: category["id"])


def category_names(categories: Iterable[dict]) -> list[str]:
    """Names of categories. A category with a ``coco_name`` is that class of COCO."""
    return [category.get("coco_name") or category["name"] for category in categories]


def are_keypoints(value: object) -> bool:
    """Whether they are x, y, visibility, x, y, visibility, ..."""
    return isinstance(value, list) and len(value) % 3 == 0 and all(map(_is_number, value))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST < value < LARGEST


def is_id(value: object) -> bool:
    """Whether it is a whole number that COCOeval, which keeps ids in float64, can tell from others."""
    return isinstance(value, int) and not isinstance(value, bool) and -LARGEST < value < LARGEST
