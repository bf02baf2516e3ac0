"""``CocoFile``: what training needs of an annotation file, read and checked at the speed of its parser."""

import contextlib
import gc
import itertools
import mmap
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from maskx_d2.data.coco_json import category_names, in_order, polygons_with_area, read_checked_json
from maskx_d2.data.coco_problems import LARGEST, LONGEST_NAME, MIN_POLYGON, category_problems, is_id
from maskx_d2.data.rle import check_rle, is_image_size

_Content = TypeVar("_Content")
_AT_ONCE = 50_000  # annotations whose polygons are checked together


class Image(msgspec.Struct, gc=False):
    """As in the file. There may be more in it."""

    id: int
    file_name: str
    width: int
    height: int


class Annotation(msgspec.Struct, gc=False):
    """As in the file, where there may be more; ``UNSET`` is what it has not."""

    id: int
    image_id: int
    category_id: int
    bbox: Annotated[list[float], msgspec.Meta(min_length=4, max_length=4)]
    segmentation: list[list[float]] | dict[str, Any] | UnsetType | None = UNSET
    iscrowd: int | UnsetType | None = UNSET
    area: float | UnsetType | None = UNSET
    keypoints: Any = UNSET
    ignore: Any = None

    @property
    def mask(self) -> list[list[float]] | dict | None:
        """Polygons of three points or more, or RLE; None for a box only."""
        if isinstance(self.segmentation, list):
            return polygons_with_area(self.segmentation) or None
        return self.segmentation or None


class CocoFile(msgspec.Struct, dict=True):
    """
    An annotation file in which nothing keeps it from being used, see :func:`find_problems`. Read by
    :func:`read_coco_file`.
    """

    images: list[Image]
    """In the order of their ids, as the categories are."""

    categories: list[dict[str, Any]]
    annotations: list[Annotation] | UnsetType = UNSET

    @property
    def class_names(self) -> list[str]:
        """In the order of the contiguous indices."""
        return category_names(self.categories)

    @cached_property
    def image_of(self) -> np.ndarray:
        """(number of annotations,) int64: the place of its image among the images."""
        image_ids = np.fromiter((image.id for image in self.images), np.int64, len(self.images))
        wanted = np.fromiter((a.image_id for a in self.annotations), np.int64, len(self.annotations))
        return np.searchsorted(image_ids, wanted)

    def by_image(self) -> Iterator[tuple[Image, list[Annotation]]]:
        """The images, each with its annotations in the order of the file."""
        order = np.argsort(self.image_of, kind="stable")
        ends = np.cumsum(np.bincount(self.image_of, minlength=len(self.images))).tolist()
        for image, start, end in zip(self.images, [0, *ends], ends, strict=False):
            yield image, [self.annotations[i] for i in order[start:end].tolist()]


def read_coco_file(path: Path, *, needs_annotations: bool = True) -> CocoFile:
    """
    Read and check an annotation file.

    Args:
        path: of the file.
        needs_annotations: whether a file without ``annotations``, as COCO's test-dev, is refused; otherwise
            it has none.

    Raises:
        FileNotFoundError, ValueError: see :func:`maskx_d2.data.coco_json.read_checked_json`.
    """
    with _without_collector():
        file = _read_fast(path, needs_annotations=needs_annotations)
        if file is None:
            # Something is wrong or unusual. The other way finds out what and where.
            file = _plain(read_checked_json(path, needs_annotations=needs_annotations))
        file.categories = in_order(file.categories)
        return file


def read_categories(path: Path) -> list[dict[str, Any]]:
    """
    The categories of an annotation file in the order of their ids, without looking at what else is in it.

    Raises:
        FileNotFoundError, ValueError: see :func:`maskx_d2.data.coco_json.read_checked_json`.
    """
    file = _decoded(path, _Categories)
    if file is None or not _categories_are_sound(file.categories):
        return read_coco_file(path).categories
    return in_order(file.categories)


class _Categories(msgspec.Struct):
    categories: list[dict[str, Any]]


def _read_fast(path: Path, *, needs_annotations: bool) -> CocoFile | None:
    """None if the file is not as most are."""
    file = _decoded(path, CocoFile)
    if file is None or (file.annotations is UNSET and needs_annotations):
        return None
    if file.annotations is UNSET:
        file.annotations = []
    try:
        file.images.sort(key=_id)
        return file if _is_sound(file) else None
    except (ValueError, OverflowError, RecursionError):
        return None


def _decoded(path: Path, kind: type[_Content]) -> _Content | None:
    """None if there is no such file, or something else in it."""
    if not path.is_file() or path.stat().st_size == 0:
        return None
    try:
        with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError):
        return None


def _plain(content: dict) -> CocoFile:
    """Of the content of an annotation file that has been checked."""
    fields = Annotation.__struct_fields__
    images = [Image(i["id"], i["file_name"], i["width"], i["height"]) for i in content["images"]]
    annotations = [
        Annotation(**{name: a[name] for name in fields if name in a}) for a in content["annotations"]
    ]
    return CocoFile(sorted(images, key=_id), content["categories"], annotations)


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Python's search for cycles goes through all that is there again and again, and finds none here."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


# ---- What find_problems() asks, of all annotations together ----


def _is_sound(file: CocoFile) -> bool:
    return (
        _categories_are_sound(file.categories)
        and _images_are_sound(file.images)
        and _annotations_are_sound(file)
        and _segmentations_are_sound(file)
    )


def _categories_are_sound(categories: list[dict]) -> bool:
    # Nothing else of a category can be looked at before.
    are_ids = all(is_id(category.get("id")) for category in categories)
    return are_ids and not any(problem.is_error for problem in category_problems(categories))


def _images_are_sound(images: list[Image]) -> bool:
    are_sound = all(len(i.file_name) <= LONGEST_NAME and is_image_size(i.height, i.width) for i in images)
    return are_sound and _are_ids(image.id for image in images)


def _annotations_are_sound(file: CocoFile) -> bool:
    annotations = file.annotations
    boxes = np.fromiter(itertools.chain.from_iterable(a.bbox for a in annotations), np.float64)
    areas = np.fromiter((0.0 if a.area in (None, UNSET) else a.area for a in annotations), np.float64)
    return (
        _are_ids(a.id for a in annotations)
        and {a.image_id for a in annotations} <= {image.id for image in file.images}
        and {a.category_id for a in annotations} <= {category["id"] for category in file.categories}
        and {a.iscrowd for a in annotations} <= {UNSET, None, 0, 1}
        and bool(np.all(np.abs(boxes) < LARGEST) and np.all(boxes.reshape(-1, 4)[:, 2:] >= 0))
        and bool(np.all(np.abs(areas) < LARGEST))
    )


def _segmentations_are_sound(file: CocoFile) -> bool:
    sizes = np.array([[i.width, i.height] for i in file.images], dtype=np.float64).reshape(-1, 2)
    for start in range(0, len(file.annotations), _AT_ONCE):
        part = file.annotations[start : start + _AT_ONCE]
        polygons, of_image = [], []
        for annotation, place in zip(part, file.image_of[start : start + _AT_ONCE].tolist(), strict=True):
            if type(annotation.segmentation) is dict:
                if not _rle_is_sound(annotation.segmentation, file.images[place]):
                    return False
            elif annotation.segmentation:
                polygons += annotation.segmentation
                of_image += [place] * len(annotation.segmentation)
        if polygons and not _fit(polygons, sizes[of_image]):
            return False
    return True


def _fit(polygons: Sequence[list[float]], sizes: np.ndarray) -> bool:
    """
    Whether polygons are of an even number of coordinates, and none of those that will be used reaches far
    outside its image, of this width and height, or is too long for it.
    """
    lengths = np.fromiter(map(len, polygons), np.int64, len(polygons))
    if np.any(lengths % 2):
        return False
    used = lengths >= MIN_POLYGON
    others = itertools.chain.from_iterable(itertools.compress(polygons, ~used))
    if not all(-LARGEST < value < LARGEST for value in others):
        return False
    points = np.fromiter(itertools.chain.from_iterable(itertools.compress(polygons, used)), np.float64)
    points, lengths, sizes = points.reshape(-1, 2), lengths[used] // 2, sizes[used]
    if len(lengths) == 0:
        return True
    starts = np.cumsum(lengths) - lengths
    following = np.arange(1, len(points) + 1)
    following[starts + lengths - 1] = starts
    outline = np.add.reduceat(np.abs(points[following] - points).max(1), starts)
    low, high = np.minimum.reduceat(points.min(1), starts), np.maximum.reduceat(points.max(1), starts)
    side, longest = sizes.max(1), 4 * sizes.prod(1) + 10 * sizes.sum(1)
    return bool(np.all((low >= -side) & (high <= 2 * side) & (outline <= longest)))


def _rle_is_sound(rle: dict, image: Image) -> bool:
    try:
        check_rle(rle)
    except ValueError:
        return False
    return list(rle["size"]) == [image.height, image.width]


def _are_ids(values: Iterable[int]) -> bool:
    """In their range, and no two the same."""
    ids = np.sort(np.fromiter(values, np.int64))
    return len(ids) == 0 or bool(-LARGEST < ids[0] and ids[-1] < LARGEST and np.all(np.diff(ids) > 0))


def _id(image: Image) -> int:
    return image.id
