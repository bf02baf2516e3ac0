"""Remarks of ``maskx check-dataset`` on annotation files: what is handled in a special way."""

from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from reprlib import repr as shown

import numpy as np
from msgspec import UNSET

from maskx_d2.data.box_check import are_loose, relative_boxes
from maskx_d2.data.coco_errors import Problem, errors, id_errors, measure, typed
from maskx_d2.data.coco_format import (
    MIN_POLYGON,
    Annotation,
    CocoFile,
    Image,
    are_keypoints,
    file_name_of,
)
from maskx_d2.data.mask_measures import MaskMeasures
from maskx_d2.data.rle import is_image_size
from maskx_d2.data.usable_objects import (
    are_listed_twice,
    has_area_in_image,
    is_possible_area,
    rectangle_classes,
)

_FIX, _FIXED = "maskx check-dataset JSON IMAGES", "--output FIXED"

_MANY = 20
"""Number of objects that says something about how a file was made."""

_remark, _note = partial(Problem, severity="remark"), partial(Problem, severity="note")


def find_problems(content: dict) -> Iterator[Problem]:
    """
    All errors and remarks.

    Args:
        content: of an annotation file, see :func:`maskx_d2.data.coco_file.read_json`.
    """
    problems = id_errors(content)
    if problems:
        yield from problems  # The other rules need ids.
        return
    file, problems = typed(content)
    measures = measure(file)
    yield from problems
    yield from errors(file, measures)
    if not problems:  # which leave out records, so that others would seem to have none
        yield from _without_annotations(file)
    yield from _of_all_masks(file, measures)
    yield from _of_all_boxes(file)
    yield from _of_categories(file)
    yield from _of_images(content["images"])
    yield from _of_annotations(file, measures)


def _of_categories(file: CocoFile) -> Iterator[Problem]:
    ids = sorted(category["id"] for category in file.categories)
    if ids and ids != list(range(1, len(ids) + 1)):
        names = [str(category.get("name")) for category in sorted(file.categories, key=lambda c: c["id"])]
        few = ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "")
        detail = f"classes are numbered in the order of the ids: {few}"
        yield _note("category ids other than 1, 2, 3, ...", f"ids from {ids[0]} to {ids[-1]}", detail)
    named = [category for category in file.categories if isinstance(category.get("name"), str)]
    of_name = defaultdict(list)
    for category in named:
        of_name[category["name"]].append(category["id"])
    for name, same in of_name.items():
        if len(same) > 1:
            detail = f"is that of the categories {', '.join(map(str, same))}, which are used as one class"
            yield _remark("names of several categories", f"name {name!r}", detail)


def _without_annotations(file: CocoFile) -> Iterator[Problem]:
    used = {annotation.category_id for annotation in file.annotations}
    named = [category for category in file.categories if isinstance(category.get("name"), str)]
    used_names = {category["name"] for category in named if category["id"] in used}
    for category in named:
        if category["name"] not in used_names:
            detail = (
                f"{category['name']!r} has no object to learn it from; {_FIX} --drop-unused-categories "
                f"{_FIXED} removes it"
            )
            yield _remark("categories without annotations", f"category {category['id']}", detail)
    annotated = {annotation.image_id for annotation in file.annotations}
    for image in file.images:
        if image.id not in annotated:
            yield _remark("images without annotations", f"image {image.id}", "not used in training")


def _of_images(records: list[dict]) -> Iterator[Problem]:
    for record in records:
        where, name = f"image {record['id']}", record.get("file_name")
        if name is None and isinstance(record.get("coco_url"), str):
            name = file_name_of(None, record["coco_url"])
            yield _note("images without file_name", where, f"coco_url says that it is {name!r}")
        elif isinstance(name, str) and "\\" in name:
            yield _note("file names with backslashes", where, f"read as {file_name_of(name, None)!r}")


def _of_annotations(file: CocoFile, measures: MaskMeasures) -> Iterator[Problem]:
    images = {image.id: image for image in file.images}
    loose, are_relative = are_loose(file, measures).tolist(), relative_boxes(file) is not None
    has_area = has_area_in_image(file.boxes, file.image_sizes).tolist()
    has_pixels = measures.has_pixels.tolist()
    columns = zip(file.annotations, has_area, has_pixels, are_listed_twice(file), loose, strict=True)
    for annotation, box_has_area, has_pixels, is_twice, is_loose in columns:
        where, image = f"annotation {annotation.id}", images.get(annotation.image_id)
        if image is not None and is_image_size(image.height, image.width):
            yield from _of_box(annotation, image, has_area=box_has_area, are_relative=are_relative)
        yield from _of_mask(annotation, has_pixels)
        yield from _of_other_fields(annotation)
        if is_twice:
            yield _remark("objects listed twice", where, "equals an earlier annotation; used once")
        if is_loose:
            detail = f"has the bbox {annotation.bbox}, of which its mask takes less than a quarter"
            yield _remark("boxes much larger than their mask", where, detail)


def _of_box(
    annotation: Annotation, image: Image, *, has_area: bool, are_relative: bool
) -> Iterator[Problem]:
    where, (x, y, width, height) = f"annotation {annotation.id}", annotation.bbox
    if width == 0 or height == 0:
        yield _remark("boxes without area", where, f"has the bbox {annotation.bbox}; not used")
    elif not has_area:
        yield _remark("boxes outside their image", where, f"has the bbox {annotation.bbox}; not used")
    elif x < -1 or y < -1 or x + width > image.width + 1 or y + height > image.height + 1:
        yield _note("boxes partly outside their image", where, f"has the bbox {annotation.bbox}; clipped")
    elif (width < 1 or height < 1) and not are_relative:
        yield _remark("boxes narrower than a pixel", where, f"has the bbox {annotation.bbox}")


def _of_mask(annotation: Annotation, has_pixels: bool) -> Iterator[Problem]:
    where, segmentation = f"annotation {annotation.id}", annotation.segmentation
    if segmentation in (None, UNSET):
        yield _note("annotations without segmentation", where, "has a box only")
    elif not segmentation or not any(segmentation):
        yield _note("annotations with an empty segmentation", where, "has a box only")
    elif not has_pixels:
        yield _remark("masks without a pixel", where, "its mask has no pixel in the image; has a box only")
    if isinstance(segmentation, list):
        for polygon in segmentation:
            if 0 < len(polygon) < MIN_POLYGON and len(polygon) % 2 == 0:
                detail = f"has a polygon of {len(polygon) // 2} points; the polygon is left out"
                yield _remark("polygons of fewer than 3 points", where, detail)
    elif isinstance(segmentation, dict) and segmentation and not annotation.iscrowd:
        form = "uncompressed" if isinstance(segmentation.get("counts"), list) else "compressed"
        yield _note(f"{form} RLE masks", where, "Detectron2 needs INPUT.MASK_FORMAT bitmask for it")


def _of_other_fields(annotation: Annotation) -> Iterator[Problem]:
    where = f"annotation {annotation.id}"
    if annotation.keypoints and not are_keypoints(annotation.keypoints):
        detail = f"has the keypoints {shown(annotation.keypoints)}, which a model of keypoints refuses"
        yield _remark("keypoints that are not x, y, visibility, ...", where, detail)
    if annotation.iscrowd:
        yield _remark("crowd regions", where, "not used in training, ignored in evaluation")
    elif annotation.ignore:
        detail = f"has ignore {shown(annotation.ignore)}: not used in training, ignored in evaluation"
        yield _remark("annotations to ignore", where, detail)
    if annotation.area not in (UNSET, None) and not is_possible_area(annotation):
        detail = f"has the area {annotation.area}; computed from its mask or box instead"
        yield _note("areas that the object cannot have", where, detail)


def _of_all_masks(file: CocoFile, measures: MaskMeasures) -> Iterator[Problem]:
    is_crowd = np.array([bool(a.iscrowd) for a in file.annotations], bool)
    num_masks, num_crowds = int(measures.has_pixels.sum()), int((measures.has_pixels & is_crowd).sum())
    if 4 * num_crowds > num_masks:
        detail = (
            f"{num_crowds} of {num_masks} have iscrowd 1 and are not trained on. Some tools write it with "
            f"all RLE masks: if they are single objects, {_FIX} --fix-crowd {_FIXED} sets it to 0"
        )
        yield _remark("masks that are crowd regions", "all masks", detail)
    names = {category["id"]: category.get("name") for category in file.categories}
    for category_id, count in rectangle_classes(file, measures).items():
        if category_id in names:
            detail = (
                f"all {count} masks of {names[category_id]!r} are rectangles: if they are boxes that were "
                "exported as polygons, fill-masks --replace-rectangles predicts masks for them"
            )
            yield _remark("classes whose masks are rectangles", f"category {category_id}", detail)


def _of_all_boxes(file: CocoFile) -> Iterator[Problem]:
    have_size = file.image_sizes.min(1) > 0
    boxes, sizes = file.boxes[have_size], file.image_sizes[have_size]
    if len(boxes) < _MANY:
        return
    reach = ((boxes[:, :2] + boxes[:, 2:]) / sizes).max(0)
    if reach.max() < 0.6:
        detail = (
            f"no box reaches beyond {reach[0]:.0%} of its image's width and {reach[1]:.0%} of its height: "
            "are they percentages, or were the images made larger afterwards?"
        )
        yield _remark("files whose objects are all in a corner", "boxes", detail)
