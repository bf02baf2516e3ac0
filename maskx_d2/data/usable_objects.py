"""What is used of an annotation file, in training, evaluation and mask filling."""

from collections import Counter, defaultdict

import numpy as np

from maskx_d2.data.coco_format import TEACHER, Annotation, CocoFile
from maskx_d2.data.mask_measures import MaskMeasures

MIN_BOX_SIDE = 0.01
"""Pixels; a box is used if the sides of its part in the image are longer."""

_FEW = 3

CROWD = "crowd regions"
NO_BOX = "boxes without area in their image"
TWICE = "objects listed twice"
NO_MASK = "masks without a pixel"
NO_OBJECT = "images without an object"


def crowd_hint(num_crowds: int) -> str:
    """Of an error for data without masks: the end of the sentence, if there are crowd regions."""
    if num_crowds == 0:
        return ""
    return (
        f"; {num_crowds:,} annotations are crowd regions (iscrowd 1), which are not used: if they are "
        "single objects, maskx check-dataset --fix-crowd writes a file without iscrowd"
    )


def keep_usable(file: CocoFile, measures: MaskMeasures) -> None:
    """
    Bring a file without errors into the form that is used, in place, and count the changes in
    ``file.left_out``, with crowd regions and images without an object, which training does not use:

    - categories of the same name become one: that of the first annotation;
    - ``ignore`` counts as ``iscrowd``;
    - objects whose box has no area in the image are removed;
    - a mask without a pixel in the image is removed, as are polygons of fewer than three points;
    - a mask by a teacher becomes the ``teacher_mask`` of an object that has a box only.

    Args:
        file: its images are in the order of their ids.
        measures: of its masks.
    """
    _merge_categories(file)
    counts: Counter[str] = Counter()
    has_area = has_area_in_image(file.boxes, file.image_sizes).tolist()
    kept = []
    for annotation, box_has_area, has_pixels in zip(
        file.annotations, has_area, measures.has_pixels.tolist(), strict=True
    ):
        if not box_has_area:
            counts[NO_BOX] += 1
            continue
        if annotation.ignore:
            annotation.iscrowd = 1
        counts[CROWD] += bool(annotation.iscrowd)
        if annotation.segmentation:
            counts[NO_MASK] += not has_pixels and any(annotation.segmentation)  # [[]] is no mask
            annotation.segmentation = annotation.mask if has_pixels else None
        annotation.teacher_mask = None
        if annotation.segmentation_source == TEACHER and not annotation.iscrowd:
            annotation.teacher_mask, annotation.segmentation = annotation.segmentation or None, None
        kept.append(annotation)
    file.keep(kept)
    with_object = {annotation.image_id for annotation in kept if not annotation.iscrowd}
    counts[NO_OBJECT] = sum(image.id not in with_object for image in file.images)
    file.left_out = +counts


def drop_repeated(file: CocoFile) -> None:
    """Of objects that are listed twice keep the first, in place; count the others in ``file.left_out``."""
    are_twice = are_listed_twice(file)
    if any(are_twice):
        file.left_out = {**file.left_out, TWICE: sum(are_twice)}
        pairs = zip(file.annotations, are_twice, strict=True)
        file.keep([annotation for annotation, is_twice in pairs if not is_twice])


def has_area_in_image(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """
    Args:
        boxes: (N, 4), XYWH.
        sizes: (N, 2), width and height of the image of each.

    Returns:
        (N,) bool: whether an object with this box is used.
    """
    low = boxes[:, :2].clip(min=0)
    high = np.minimum(boxes[:, :2] + boxes[:, 2:], sizes)
    return (high - low > MIN_BOX_SIDE).all(1)


def _merge_categories(file: CocoFile) -> None:
    # Not by COCO's names, which several classes of Visual Genome share.
    names = [category["name"] for category in file.categories]
    if len(set(names)) == len(names):
        return
    used = Counter(annotation.category_id for annotation in file.annotations)
    of_name: dict[str, list[dict]] = defaultdict(list)
    for name, category in zip(names, file.categories, strict=True):
        of_name[name].append(category)
    kept_id = {}
    for same in of_name.values():
        kept = next((category for category in same if used[category["id"]]), same[0])
        kept_id |= {category["id"]: kept["id"] for category in same}
    file.categories = [c for c in file.categories if kept_id[c["id"]] == c["id"]]
    for annotation in file.annotations:
        annotation.category_id = kept_id[annotation.category_id]


def are_listed_twice(file: CocoFile) -> list[bool]:
    """For each annotation, whether an earlier one has the same image, class, box and mask."""
    category_ids = [annotation.category_id for annotation in file.annotations]
    columns = np.column_stack([file.image_of, np.array(category_ids, float), file.boxes])
    # Records with the same sum are few. They are compared.
    sums = columns @ np.sqrt([2, 3, 5, 7, 11, 13])
    _, which, counts = np.unique(sums, return_inverse=True, return_counts=True)
    are_twice = np.zeros(len(file.annotations), bool)
    seen: dict[tuple, list[Annotation]] = defaultdict(list)
    for index in np.flatnonzero(counts[which] > 1).tolist():
        annotation = file.annotations[index]
        same = seen[(annotation.image_id, annotation.category_id, *annotation.bbox)]
        masks = [other.segmentation or None for other in same]
        are_twice[index] = (annotation.segmentation or None) in masks
        same.append(annotation)
    return are_twice.tolist()


def rectangle_classes(file: CocoFile, measures: MaskMeasures) -> dict[int, int]:
    """
    Category id -> number of masks, of the classes all of whose masks are rectangles, as where boxes are
    exported as polygons. It takes three of them to tell, of a class or, without others, of the file.
    """
    masks, rectangles = Counter(), Counter()
    for annotation, has_pixels, is_rectangle in zip(
        file.annotations, measures.has_pixels.tolist(), measures.is_rectangle.tolist(), strict=True
    ):
        if has_pixels and not annotation.iscrowd:
            masks[annotation.category_id] += 1
            rectangles[annotation.category_id] += is_rectangle
    found = {c: n for c, n in masks.items() if rectangles[c] == n}
    if len(found) == len(masks) and sum(found.values()) >= _FEW:
        return found
    return {c: n for c, n in found.items() if n >= _FEW}


def is_possible_area(annotation: Annotation) -> bool:
    """Whether it is greater than zero, and not much greater than that of the box."""
    area, (_, _, width, height) = annotation.area, annotation.bbox
    return isinstance(area, int | float) and 0 < area <= 1.5 * (width + 2) * (height + 2)
