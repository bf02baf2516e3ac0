"""What can be wrong, or out of the ordinary, with a dataset in COCO's format, and where."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from reprlib import repr as shown

from maskx_d2.data.images import MAX_MEGAPIXELS, read_image, size_difference
from maskx_d2.data.printable import printable
from maskx_d2.data.rle import check_rle, is_image_size

PARTS = ("images", "annotations", "categories")
MIN_POLYGON = 6  # coordinates of three points
_MAX_NAMED = 5
LONGEST_NAME = 1000
LARGEST = 2**53  # COCOeval keeps ids in float64


@dataclass(frozen=True)
class Problem:
    """Something that training or evaluation stumbles over (an error), or deals with (a remark)."""

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
    Args:
        content: an annotation file with all of :data:`PARTS`.
    """
    without_id = [
        problem
        for what, records in zip(("image", "annotation", "category"), map(content.get, PARTS), strict=True)
        for problem in _ids(what, records)
    ]
    if without_id:
        # The rest goes by ids.
        yield from without_id
        return
    yield from category_problems(content["categories"])
    yield from _of_images(content["images"])
    images = {image.get("id"): image for image in content["images"]}
    category_ids = {category.get("id") for category in content["categories"]}
    yield from _duplicates("annotation", content["annotations"])
    for annotation in content["annotations"]:
        yield from _of_annotation(annotation, images, category_ids)
    annotated = {a["image_id"] for a in content["annotations"] if _is_among(a.get("image_id"), images)}
    for image_id in images:
        if image_id not in annotated:
            yield _remark("images without annotations", f"image {image_id}", "not used in training")


def category_problems(categories: list[dict]) -> Iterator[Problem]:
    if not categories:
        yield Problem(
            "annotation files without categories", "categories", "are empty, expected one at least"
        )
    yield from _duplicates("category", categories)
    for category in categories:
        if not isinstance(category.get("name"), str):
            where = f"category {category.get('id')}"
            yield Problem("categories without name", where, f"has the name {shown(category.get('name'))}")
        if not isinstance(category.get("coco_name"), str | None):
            detail = f"has the coco_name {shown(category['coco_name'])}, expected a name"
            yield Problem("categories without name", f"category {category['id']}", detail)
        count = category.get("instance_count")
        if count is not None and not (is_id(count) and count >= 0):
            detail = f"has the instance_count {shown(count)}, expected a whole number of 0 or more"
            yield Problem("categories with another instance_count", f"category {category['id']}", detail)
    names = [category["name"] for category in categories if isinstance(category.get("name"), str)]
    for name, count in Counter(names).items():
        if count > 1:
            yield Problem("names of several categories", f"name {name!r}", f"is that of {count} categories")
    ids = sorted(category["id"] for category in categories if isinstance(category.get("id"), int))
    if ids and ids != list(range(1, len(ids) + 1)):
        where = f"ids from {ids[0]} to {ids[-1]}"
        yield _remark("gaps in the category ids", where, "classes are numbered in the order of their ids")


def _of_images(images: list[dict]) -> Iterator[Problem]:
    yield from _duplicates("image", images)
    for image in images:
        where = f"image {image.get('id')}"
        file_name = image.get("file_name")
        if not isinstance(file_name, str) or len(file_name) > LONGEST_NAME:
            yield Problem("images without file name", where, f"has the file_name {shown(file_name)}")
        if not _has_size(image):
            size = f"width {shown(image.get('width'))} and height {shown(image.get('height'))}"
            detail = f"has {size}, expected numbers of pixels"
            yield Problem("images without size", where, detail)


def _ids(what: str, records: list[dict]) -> Iterator[Problem]:
    for number, record in enumerate(records, start=1):
        if not is_id(record.get("id")):
            detail = f"has the id {shown(record.get('id'))}, expected a whole number"
            yield Problem(f"{_plural(what)} without id", f"{what} number {number}", detail)


def _plural(what: str) -> str:
    return {"category": "categories"}.get(what, f"{what}s")


def _duplicates(what: str, records: list[dict]) -> Iterator[Problem]:
    plural = _plural(what)
    for identifier, count in Counter(record["id"] for record in records).items():
        if count > 1:
            detail = f"is the id of {count} {plural}, expected of one"
            yield Problem(f"ids of several {plural}", f"{what} {identifier}", detail)


def _of_annotation(annotation: dict, images: dict, category_ids: set) -> Iterator[Problem]:
    where = f"annotation {annotation.get('id')}"
    if not _is_among(annotation.get("category_id"), category_ids):
        detail = f"has category_id {shown(annotation.get('category_id'))}, which no category has"
        yield Problem("annotations of an unknown category", where, detail)
    image = images[annotation["image_id"]] if _is_among(annotation.get("image_id"), images) else None
    if image is None:
        detail = f"has image_id {shown(annotation.get('image_id'))}, which no image has"
        yield Problem("annotations of an unknown image", where, detail)
    yield from _of_box(annotation.get("bbox"), image, where)
    segmentation = annotation.get("segmentation")
    yield from _of_segmentation(segmentation, image, where)
    if annotation.get("keypoints") and not are_keypoints(annotation["keypoints"]):
        detail = f"has the keypoints {shown(annotation['keypoints'])}, which a model of keypoints refuses"
        yield _remark("keypoints that are not x, y, visibility, ...", where, detail)
    if annotation.get("iscrowd") not in (None, 0, 1):
        detail = f"has iscrowd {shown(annotation['iscrowd'])}, expected 0 or 1"
        yield Problem("annotations with another iscrowd", where, detail)
    if annotation.get("area") is not None and not _is_number(annotation["area"]):
        detail = f"has the area {shown(annotation['area'])}, expected a number of pixels"
        yield Problem("annotations without area", where, detail)
    if annotation.get("iscrowd"):
        yield _remark("crowd regions", where, "not used in training, ignored in evaluation")
    elif isinstance(segmentation, dict):
        form = "uncompressed" if isinstance(segmentation.get("counts"), list) else "compressed"
        yield _remark(f"{form} RLE masks", where, "Detectron2 needs INPUT.MASK_FORMAT bitmask for it")


def _of_box(box, image: dict | None, where: str) -> Iterator[Problem]:
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        yield Problem(
            "annotations without box", where, f"has the bbox {shown(box)}, expected [x, y, width, height]"
        )
        return
    x, y, width, height = box
    if width < 0 or height < 0:
        detail = f"has the bbox {box}, expected a width and height of zero or more"
        yield Problem("boxes of negative size", where, detail)
    elif width == 0 or height == 0:
        yield _remark("boxes without area", where, f"has the bbox {box}; not used in training")
    elif image is not None and _has_size(image):
        if x >= image["width"] or y >= image["height"] or x + width <= 0 or y + height <= 0:
            yield _remark("boxes outside their image", where, f"has the bbox {box}; not used in training")
        elif x < -1 or y < -1 or x + width > image["width"] + 1 or y + height > image["height"] + 1:
            yield _remark("boxes partly outside their image", where, f"has the bbox {box}; clipped")


def _of_segmentation(segmentation, image: dict | None, where: str) -> Iterator[Problem]:
    if segmentation is None:
        yield _remark("annotations without segmentation", where, "has a box only")
    elif isinstance(segmentation, dict):
        yield from _of_rle(segmentation, image, where)
    elif not isinstance(segmentation, list):
        detail = f"has a {type(segmentation).__name__} as segmentation, expected polygons or RLE"
        yield Problem("segmentations of an unknown form", where, detail)
    elif not segmentation:
        yield _remark("annotations with an empty segmentation", where, "has a box only")
    else:
        for polygon in segmentation:
            if not isinstance(polygon, list) or not all(map(_is_number, polygon)) or len(polygon) % 2 != 0:
                detail = "has a polygon that is not a list of x, y, x, y, ..."
                yield Problem("segmentations of an unknown form", where, detail)
            elif len(polygon) < MIN_POLYGON:
                detail = f"has a polygon of {len(polygon) // 2} points; the polygon is left out"
                yield _remark("polygons of fewer than 3 points", where, detail)
            elif image is not None and _has_size(image) and not _fits(polygon, image):
                detail = "has a polygon that reaches far outside its image or is too long for it"
                yield Problem("polygons that do not fit their image", where, detail)


def _fits(polygon: list[float], image: dict) -> bool:
    """pycocotools takes memory for each pixel of an outline, without asking whether there is any."""
    width, height = image["width"], image["height"]
    side = max(width, height)
    if not all(-side <= value <= 2 * side for value in polygon):
        return False
    points = list(zip(polygon[::2], polygon[1::2], strict=True))
    edges = zip(points, [*points[1:], points[0]], strict=True)
    length = sum(max(abs(x1 - x0), abs(y1 - y0)) for (x0, y0), (x1, y1) in edges)
    return length <= 4 * width * height + 10 * (width + height)


def _of_rle(rle: dict, image: dict | None, where: str) -> Iterator[Problem]:
    try:
        check_rle(rle)
    except ValueError as error:
        yield Problem("broken RLE masks", where, str(error))
        return
    size, of_image = list(rle["size"]), None
    if image is not None and _has_size(image):
        of_image = [image["height"], image["width"]]
    if of_image is not None and size != of_image:
        detail = f"has RLE of size {size}, expected {of_image}"
        yield Problem("RLE masks of another size", where, detail)


def _is_among(identifier, known) -> bool:
    return is_id(identifier) and identifier in known


def _has_size(image: dict) -> bool:
    return is_image_size(image.get("height"), image.get("width"))


def _is_number(value) -> bool:
    """Of pixels, as a coordinate or an area. NaN is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST < value < LARGEST


def are_keypoints(value) -> bool:
    """Whether they are x, y, visibility, x, y, visibility, ..."""
    return isinstance(value, list) and len(value) % 3 == 0 and all(map(_is_number, value))


def is_id(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -LARGEST < value < LARGEST


# ---- Image files ----


def find_image_problems(
    content: dict,
    image_root: Path,
    *,
    max_megapixels: float = MAX_MEGAPIXELS,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Iterator[Problem]:
    """
    Read every image of a dataset, several at a time.

    Args:
        content: an annotation file.
        image_root: the folder that file names are relative to.
        max_megapixels: larger images cannot be read.
        progress: wraps the images, as ``tqdm`` does.
    """
    names = [(image, image.get("file_name")) for image in content["images"]]
    images = [image for image, n in names if isinstance(n, str) and len(n) <= LONGEST_NAME]
    with ThreadPoolExecutor() as threads:
        found = threads.map(partial(_of_image_file, image_root, max_megapixels), images)
        for problem in progress(found):
            if problem is not None:
                yield problem


def _of_image_file(image_root: Path, max_megapixels: float, image: dict) -> Problem | None:
    path = image_root / image["file_name"]
    try:
        size = read_image(path, max_megapixels=max_megapixels).size
    except FileNotFoundError:
        return Problem("image files that do not exist", image["file_name"], f"is not in {image_root}")
    except ValueError as error:
        return Problem("image files that cannot be read", image["file_name"], str(error.__cause__))
    if _has_size(image) and (detail := size_difference(size, image)):
        return Problem("image files of another size", image["file_name"], detail)
    return None


# ---- Reports ----


def problem_report(problems: Iterable[Problem]) -> str:
    """All problems by kind, errors first, each kind with its count and its first few places."""
    of_kind: dict[tuple[bool, str], list[Problem]] = defaultdict(list)
    for problem in problems:
        of_kind[not problem.is_error, problem.kind].append(problem)
    lines = []
    for title, is_remark in (("Errors", False), ("Remarks", True)):
        kinds = {kind: found for (remark, kind), found in of_kind.items() if remark is is_remark}
        if kinds:
            lines.append(f"{title}:")
        for kind, found in kinds.items():
            lines.append(f"  {len(found)} {kind}")
            lines += [f"      {printable(p.where)}: {printable(p.detail)}" for p in found[:_MAX_NAMED]]
            if len(found) > _MAX_NAMED:
                lines.append(f"      and {len(found) - _MAX_NAMED} more")
    return "\n".join(lines)
