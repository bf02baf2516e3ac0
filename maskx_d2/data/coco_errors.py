"""Errors in annotation files: what training or evaluation would fail on, or take for something else."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from reprlib import repr as shown

import msgspec
import numpy as np
from msgspec import UNSET

from maskx_d2.data.box_check import boxes_of_larger_images, misplaced_boxes, relative_boxes
from maskx_d2.data.coco_format import (
    LARGEST,
    LONGEST_NAME,
    PARTS,
    Annotation,
    CocoFile,
    Image,
    is_id,
    put_in_order,
)
from maskx_d2.data.mask_measures import MaskMeasures
from maskx_d2.data.rle import is_image_size

_TEXT_IDS = ", not text, here and where other records refer to it"


@dataclass(frozen=True)
class Problem:
    """An error, which training or evaluation would fail on, or a remark or note on what they handle."""

    kind: str
    """What problems of one kind are counted under, in the plural."""

    where: str
    """As ``annotation 17``, ``image 3`` or a file name."""

    detail: str
    """What was found and what was expected."""

    severity: str = "error"
    """``"error"``, ``"remark"``, or ``"note"`` for what needs no action."""

    @property
    def is_error(self) -> bool:
        return self.severity == "error"


def id_errors(content: dict) -> list[Problem]:
    """Of records whose id is not a whole number."""
    names = ("image", "annotation", "category")
    return [
        Problem(
            f"{_plural(what)} whose id is not a whole number",
            f"{what} number {number}",
            f"has the id {shown(record.get('id'))}, expected a whole number{_TEXT_IDS * _is_text(record)}",
        )
        for what, records in zip(names, map(content.get, PARTS), strict=True)
        for number, record in enumerate(records, start=1)
        if not is_id(record.get("id"))
    ]


def _is_text(record: dict) -> bool:
    return isinstance(record.get("id"), str)


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
    put_in_order(file)
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
    if field == "segmentation" and value and all(isinstance(number, int | float) for number in value):
        detail = "has a flat list of numbers as segmentation, expected a list of polygons: [[x, y, ...]]"
        return Problem("segmentations of an unknown form", where, detail)
    if field == "segmentation":
        return _no_polygon(where)
    if field == "area":
        return _no_area(where, value)
    if field == "file_name":
        return _no_file_name(where, value)
    return _no_size(where, record.get("width"), record.get("height"))


# ---- Of all records together: training reads files of a million annotations ----


def measure(file: CocoFile) -> MaskMeasures:
    """
    Measure the masks of a file.

    Args:
        file: its images are in the order of their ids.
    """
    return MaskMeasures.of([a.segmentation or None for a in file.annotations], file.image_sizes)


def errors(file: CocoFile, measures: MaskMeasures) -> Iterator[Problem]:
    """
    All errors of records whose fields have the right types.

    Args:
        file: its images are in the order of their ids.
        measures: of its masks.
    """
    yield from category_errors(file.categories)
    yield from _image_errors(file.images)
    yield from _annotation_errors(file)
    yield from _segmentation_errors(file, measures)
    yield from _box_errors(file, measures)


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


def _image_errors(images: list[Image]) -> Iterator[Problem]:
    yield from _duplicates("image", (image.id for image in images))
    for name, count in Counter(image.file_name for image in images).items():
        if count > 1 and name is not None:
            detail = f"is that of {count} images, expected of one"
            yield Problem("file names of several images", f"file_name {shown(name)}", detail)
    for image in images:
        if image.file_name is None or len(image.file_name) > LONGEST_NAME:
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
    boxes = file.boxes
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


def _segmentation_errors(file: CocoFile, measures: MaskMeasures) -> Iterator[Problem]:
    offends = measures.is_malformed | ~measures.fits
    offends[list(measures.rle_errors)] = True
    for index in np.flatnonzero(offends).tolist():
        where = f"annotation {file.annotations[index].id}"
        if index in measures.rle_errors:
            yield Problem("broken RLE masks", where, measures.rle_errors[index])
        elif measures.is_malformed[index]:
            yield _no_polygon(where)
        else:
            detail = "has a polygon that reaches far outside its image or is too long for it"
            yield Problem("polygons that do not fit their image", where, detail)


def _box_errors(file: CocoFile, measures: MaskMeasures) -> Iterator[Problem]:
    def where(index: int) -> str:
        return f"annotation {file.annotations[index].id}"

    if (found := relative_boxes(file)) is not None:
        yield Problem("files with relative coordinates", where(found[0]), found[1])
        return
    index = None
    for index, detail in misplaced_boxes(file, measures):
        yield Problem("boxes that do not fit their mask", where(index), detail)
    if index is None and (found := boxes_of_larger_images(file)) is not None:
        yield Problem("files of larger images", where(found[0]), found[1])


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
