"""COCO's format: the records of an annotation file and the rules that they must follow."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from reprlib import repr as shown
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from maskx_d2.data.rle import check_rle, is_image_size

PARTS = ("images", "annotations", "categories")
MIN_POLYGON = 6  # coordinates of three points
LONGEST_NAME = 1000
LARGEST = 2**53  # COCOeval keeps ids in float64
_AT_ONCE = 50_000  # annotations whose polygons are checked together


# ---- Records. Their types are the first rules ----


_Id = Annotated[int, msgspec.Meta(gt=-LARGEST, lt=LARGEST)]


class Image(msgspec.Struct, gc=False):
    """The fields that are read; a file may have more."""

    id: _Id
    file_name: str
    width: int
    height: int


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

    @property
    def class_names(self) -> list[str]:
        """In the order of the contiguous indices."""
        return category_names(self.categories)

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


def in_order(categories: Iterable[dict]) -> list[dict]:
    """Categories in the order of their contiguous indices, which is that of their ids."""
    return sorted(categories, key=lambda category: category["id"])


def category_names(categories: Iterable[dict]) -> list[str]:
    """Names of categories. A category with a ``coco_name`` is that class of COCO."""
    return [category.get("coco_name") or category["name"] for category in categories]


# ---- Problems ----


@dataclass(frozen=True)
class Problem:
    """An error, which training or evaluation would fail on, or a remark on what they handle."""

    kind: str
    """What problems of one kind are counted under, in the plural."""

    where: str
    """As ``annotation 17``, ``image 3`` or a file name."""

    detail: str
    """What was found and what was expected."""

    is_error: bool = True


_remark = partial(Problem, is_error=False)


def find_problems(content: dict) -> Iterator[Problem]:
    """
    All errors and remarks.

    Args:
        content: of an annotation file, with all of :data:`PARTS`.
    """
    problems = id_errors(content)
    if problems:
        yield from problems  # The other rules need ids.
        return
    file, problems = typed(content)
    yield from problems
    yield from errors(file)
    yield from _remarks(file)


def id_errors(content: dict) -> list[Problem]:
    """Of records whose id is not a whole number."""
    names = ("image", "annotation", "category")
    return [
        Problem(
            f"{_plural(what)} without id",
            f"{what} number {number}",
            f"has the id {shown(record.get('id'))}, expected a whole number",
        )
        for what, records in zip(names, map(content.get, PARTS), strict=True)
        for number, record in enumerate(records, start=1)
        if not is_id(record.get("id"))
    ]


def typed(content: dict) -> tuple[CocoFile, list[Problem]]:
    """
    Args:
        content: of an annotation file, without :func:`id_errors`.

    Returns:
        Its records. Records with a field of another type are left out, and an error each.
    """
    try:
        file, problems = msgspec.convert(content, CocoFile), []
    except (msgspec.ValidationError, OverflowError, RecursionError):
        images, of_images = _typed_records("image", content["images"], Image)
        annotations, of_annotations = _typed_records("annotation", content["annotations"], Annotation)
        # Annotations of images that are left out are not errors of their own.
        left_out = {record["id"] for record in content["images"]} - {image.id for image in images}
        annotations = [a for a in annotations if a.image_id not in left_out]
        file, problems = CocoFile(images, content["categories"], annotations), of_images + of_annotations
    file.images.sort(key=lambda image: image.id)
    return file, problems


def _typed_records(
    what: str, records: list[dict], kind: type[msgspec.Struct]
) -> tuple[list, list[Problem]]:
    fine, problems = [], []
    for record in records:
        found = []
        for field in msgspec.structs.fields(kind):
            try:
                if field.name in record or field.required:
                    msgspec.convert(record.get(field.name), field.type)
            except (msgspec.ValidationError, OverflowError, RecursionError):
                found.append(_type_error(f"{what} {record['id']}", field.name, record))
        problems += found
        if not found:
            fine.append(msgspec.convert(record, kind))
    return fine, problems


def _type_error(where: str, field: str, record: dict) -> Problem:
    value = record.get(field)
    if field == "image_id":
        return _unknown_image(where, value)
    if field == "category_id":
        return _unknown_category(where, value)
    if field == "bbox":
        return _no_box(where, value)
    if field == "segmentation" and not isinstance(value, list):
        detail = f"has a {type(value).__name__} as segmentation, expected polygons or RLE"
        return Problem("segmentations of an unknown form", where, detail)
    if field == "segmentation":
        return _no_polygon(where)
    if field == "area":
        return _no_area(where, value)
    if field == "file_name":
        return _no_file_name(where, value)
    return _no_size(where, record.get("width"), record.get("height"))


# ---- Errors, of all records together: training reads files of a million annotations ----


def errors(file: CocoFile) -> Iterator[Problem]:
    """
    All errors of records whose fields have the right types.

    Args:
        file: its images are in the order of their ids.
    """
    yield from category_errors(file.categories)
    yield from _image_errors(file.images)
    yield from _annotation_errors(file)
    yield from _segmentation_errors(file)


def category_errors(categories: list[dict]) -> Iterator[Problem]:
    """Of categories with ids."""
    if not categories:
        yield Problem(
            "annotation files without categories", "categories", "are empty, expected at least one"
        )
    yield from _duplicates("category", (category["id"] for category in categories))
    for category in categories:
        where = f"category {category['id']}"
        if not isinstance(category.get("name"), str):
            yield Problem("categories without name", where, f"has the name {shown(category.get('name'))}")
        if not isinstance(category.get("coco_name"), str | None):
            detail = f"has the coco_name {shown(category['coco_name'])}, expected a name"
            yield Problem("categories without name", where, detail)
        count = category.get("instance_count")
        if count is not None and not (is_id(count) and count >= 0):
            detail = f"has the instance_count {shown(count)}, expected a whole number of 0 or more"
            yield Problem("categories with another instance_count", where, detail)
    names = Counter(category["name"] for category in categories if isinstance(category.get("name"), str))
    for name, count in names.items():
        if count > 1:
            yield Problem("names of several categories", f"name {name!r}", f"is that of {count} categories")


def _image_errors(images: list[Image]) -> Iterator[Problem]:
    yield from _duplicates("image", (image.id for image in images))
    for image in images:
        if len(image.file_name) > LONGEST_NAME:
            yield _no_file_name(f"image {image.id}", image.file_name)
        if not is_image_size(image.height, image.width):
            yield _no_size(f"image {image.id}", image.width, image.height)


def _annotation_errors(file: CocoFile) -> Iterator[Problem]:
    annotations = file.annotations
    yield from _duplicates("annotation", (a.id for a in annotations))

    def offenders(offends: Iterable[bool]) -> Iterator[tuple[str, Annotation]]:
        for annotation in itertools.compress(annotations, offends):
            yield f"annotation {annotation.id}", annotation

    found = np.fromiter((a.category_id for a in annotations), np.int64, len(annotations))
    known = [category["id"] for category in file.categories]
    for where, annotation in offenders(~np.isin(found, np.array(known, np.int64))):
        yield _unknown_category(where, annotation.category_id)
    found = np.fromiter((a.image_id for a in annotations), np.int64, len(annotations))
    known = [image.id for image in file.images]
    for where, annotation in offenders(~np.isin(found, np.array(known, np.int64))):
        yield _unknown_image(where, annotation.image_id)
    boxes = np.fromiter(itertools.chain.from_iterable(a.bbox for a in annotations), np.float64)
    boxes = boxes.reshape(-1, 4)
    are_numbers = np.all(np.abs(boxes) < LARGEST, axis=1)
    for where, annotation in offenders(~are_numbers):
        yield _no_box(where, annotation.bbox)
    for where, annotation in offenders(are_numbers & np.any(boxes[:, 2:] < 0, axis=1)):
        detail = f"has the bbox {annotation.bbox}, expected a width and height of zero or more"
        yield Problem("boxes of negative size", where, detail)
    for where, annotation in offenders(
        a.iscrowd != 0 and a.iscrowd not in (UNSET, None, 1) for a in annotations
    ):
        detail = f"has iscrowd {shown(annotation.iscrowd)}, expected 0 or 1"
        yield Problem("annotations with another iscrowd", where, detail)
    areas = np.fromiter((0.0 if a.area in (None, UNSET) else a.area for a in annotations), np.float64)
    for where, annotation in offenders(~(np.abs(areas) < LARGEST)):
        yield _no_area(where, annotation.area)


def _segmentation_errors(file: CocoFile) -> Iterator[Problem]:
    """Part by part: all coordinates together would take too much memory."""
    images = file.images
    sizes = np.array([[i.width, i.height] for i in images], dtype=np.float64).reshape(-1, 2)
    for start in range(0, len(file.annotations), _AT_ONCE):
        part = file.annotations[start : start + _AT_ONCE]
        polygons, owners, places = [], [], []
        for annotation, place in zip(part, file.image_of[start : start + _AT_ONCE].tolist(), strict=True):
            if not annotation.segmentation:
                continue
            if place == len(images) or images[place].id != annotation.image_id:
                continue  # An unknown image is an error of its own.
            if type(annotation.segmentation) is dict:
                yield from _rle_errors(annotation, images[place])
            else:
                polygons += annotation.segmentation
                owners += [annotation] * len(annotation.segmentation)
                places += [place] * len(annotation.segmentation)
        if polygons:
            yield from _polygon_errors(polygons, owners, sizes[places])


def _rle_errors(annotation: Annotation, image: Image) -> Iterator[Problem]:
    where, rle = f"annotation {annotation.id}", annotation.segmentation
    try:
        check_rle(rle)
    except ValueError as error:
        yield Problem("broken RLE masks", where, str(error))
        return
    size, expected = list(rle["size"]), [image.height, image.width]
    if size != expected and is_image_size(*expected):
        yield Problem("RLE masks of another size", where, f"has RLE of size {size}, expected {expected}")


def _polygon_errors(
    polygons: Sequence[list[float]], owners: Sequence[Annotation], sizes: np.ndarray
) -> Iterator[Problem]:
    """
    Polygons have an even number of coordinates. Those that are used do not reach far outside their image,
    and are not too long for it: pycocotools takes memory for each pixel of an outline.

    Args:
        polygons: P of them.
        owners: the annotation of each.
        sizes: (P, 2), width and height of the image of each.
    """
    lengths = np.fromiter(map(len, polygons), np.int64, len(polygons))
    is_even = lengths % 2 == 0
    used = is_even & (lengths >= MIN_POLYGON)
    is_fine = is_even.copy()
    for index in np.flatnonzero(is_even & ~used):
        is_fine[index] = all(-LARGEST < value < LARGEST for value in polygons[index])
    fits = np.ones(len(polygons), dtype=bool)
    if used.any():
        is_fine[used], fits[used] = _are_numbers_and_fit(
            list(itertools.compress(polygons, used)), lengths[used] // 2, sizes[used]
        )
    for index in np.flatnonzero(~is_fine | ~fits):
        where = f"annotation {owners[index].id}"
        if not is_fine[index]:
            yield _no_polygon(where)
            continue
        detail = "has a polygon that reaches far outside its image or is too long for it"
        yield Problem("polygons that do not fit their image", where, detail)


def _are_numbers_and_fit(
    polygons: Sequence[list[float]], num_points: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(P,) bool each."""
    points = np.fromiter(itertools.chain.from_iterable(polygons), np.float64).reshape(-1, 2)
    starts = np.cumsum(num_points) - num_points
    following = np.arange(1, len(points) + 1)
    following[starts + num_points - 1] = starts
    outline = np.add.reduceat(np.abs(points[following] - points).max(1), starts)
    low, high = np.minimum.reduceat(points.min(1), starts), np.maximum.reduceat(points.max(1), starts)
    side, longest = sizes.max(1), 4 * sizes.prod(1) + 10 * sizes.sum(1)
    return (low > -LARGEST) & (high < LARGEST), (low >= -side) & (high <= 2 * side) & (outline <= longest)


def _duplicates(what: str, identifiers: Iterable[int]) -> Iterator[Problem]:
    values, counts = np.unique(np.fromiter(identifiers, np.int64), return_counts=True)
    for identifier, count in zip(values[counts > 1].tolist(), counts[counts > 1].tolist(), strict=True):
        detail = f"is the id of {count} {_plural(what)}, expected of one"
        yield Problem(f"ids of several {_plural(what)}", f"{what} {identifier}", detail)


def _unknown_image(where: str, image_id: object) -> Problem:
    detail = f"has image_id {shown(image_id)}, which no image has"
    return Problem("annotations of an unknown image", where, detail)


def _unknown_category(where: str, category_id: object) -> Problem:
    detail = f"has category_id {shown(category_id)}, which no category has"
    return Problem("annotations of an unknown category", where, detail)


def _no_box(where: str, box: object) -> Problem:
    detail = f"has the bbox {shown(box)}, expected [x, y, width, height]"
    return Problem("annotations without box", where, detail)


def _no_polygon(where: str) -> Problem:
    detail = "has a polygon that is not a list of x, y, x, y, ..."
    return Problem("segmentations of an unknown form", where, detail)


def _no_area(where: str, area: object) -> Problem:
    return Problem(
        "annotations without area", where, f"has the area {shown(area)}, expected a number of pixels"
    )


def _no_file_name(where: str, file_name: object) -> Problem:
    return Problem("images without file name", where, f"has the file_name {shown(file_name)}")


def _no_size(where: str, width: object, height: object) -> Problem:
    detail = f"has width {shown(width)} and height {shown(height)}, expected numbers of pixels"
    return Problem("images without size", where, detail)


def _plural(what: str) -> str:
    return {"category": "categories"}.get(what, f"{what}s")


# ---- Remarks, which only maskx check-dataset asks for ----


def _remarks(file: CocoFile) -> Iterator[Problem]:
    ids = sorted(category["id"] for category in file.categories)
    if ids and ids != list(range(1, len(ids) + 1)):
        where = f"ids from {ids[0]} to {ids[-1]}"
        yield _remark("gaps in the category ids", where, "classes are numbered in the order of their ids")
    images = {image.id: image for image in file.images}
    for annotation in file.annotations:
        yield from _annotation_remarks(annotation, images.get(annotation.image_id))
    annotated = {annotation.image_id for annotation in file.annotations}
    for image_id in images:
        if image_id not in annotated:
            yield _remark("images without annotations", f"image {image_id}", "not used in training")


def _annotation_remarks(annotation: Annotation, image: Image | None) -> Iterator[Problem]:
    where, segmentation = f"annotation {annotation.id}", annotation.segmentation
    x, y, width, height = box = annotation.bbox
    if width == 0 or height == 0:
        yield _remark("boxes without area", where, f"has the bbox {box}; not used in training")
    elif image is not None and is_image_size(image.height, image.width):
        if x >= image.width or y >= image.height or x + width <= 0 or y + height <= 0:
            yield _remark("boxes outside their image", where, f"has the bbox {box}; not used in training")
        elif x < -1 or y < -1 or x + width > image.width + 1 or y + height > image.height + 1:
            yield _remark("boxes partly outside their image", where, f"has the bbox {box}; clipped")
    if segmentation in (None, UNSET):
        yield _remark("annotations without segmentation", where, "has a box only")
    elif segmentation == []:
        yield _remark("annotations with an empty segmentation", where, "has a box only")
    elif isinstance(segmentation, list):
        for polygon in segmentation:
            if len(polygon) < MIN_POLYGON and len(polygon) % 2 == 0:
                detail = f"has a polygon of {len(polygon) // 2} points; the polygon is left out"
                yield _remark("polygons of fewer than 3 points", where, detail)
    if annotation.keypoints and not are_keypoints(annotation.keypoints):
        detail = f"has the keypoints {shown(annotation.keypoints)}, which a model of keypoints refuses"
        yield _remark("keypoints that are not x, y, visibility, ...", where, detail)
    if annotation.iscrowd not in (UNSET, None, 0):
        yield _remark("crowd regions", where, "not used in training, ignored in evaluation")
    elif isinstance(segmentation, dict):
        form = "uncompressed" if isinstance(segmentation.get("counts"), list) else "compressed"
        yield _remark(f"{form} RLE masks", where, "Detectron2 needs INPUT.MASK_FORMAT bitmask for it")


def are_keypoints(value: object) -> bool:
    """Whether they are x, y, visibility, x, y, visibility, ..."""
    return isinstance(value, list) and len(value) % 3 == 0 and all(map(_is_number, value))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST < value < LARGEST


def is_id(value: object) -> bool:
    """Whether it is a whole number that COCOeval, which keeps ids in float64, can tell from others."""
    return isinstance(value, int) and not isinstance(value, bool) and -LARGEST < value < LARGEST
