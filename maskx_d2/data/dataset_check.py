"""``maskx check-dataset``: the image files of a dataset, and a report of all problems."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from maskx_d2.data.coco_errors import Problem
from maskx_d2.data.coco_file import records_of
from maskx_d2.data.coco_format import LONGEST_NAME, file_name_of
from maskx_d2.data.images import MAX_MEGAPIXELS, read_image, size_difference
from maskx_d2.data.printable import printable
from maskx_d2.data.rle import is_image_size
from maskx_d2.data.usable_objects import drop_repeated

_MAX_NAMED = 5
_TITLES = {"error": "Errors", "remark": "Remarks", "note": "Notes, which need no action"}


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
    names = [file_name_of(image.get("file_name"), image.get("coco_url")) for image in content["images"]]
    images = [
        {**image, "file_name": name}
        for image, name in zip(content["images"], names, strict=True)
        if isinstance(name, str) and len(name) <= LONGEST_NAME
    ]
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
    has_size = is_image_size(image.get("height"), image.get("width"))
    if has_size and (detail := size_difference(size, image)):
        return Problem("image files of another size", image["file_name"], detail)
    return None


def use_report(content: dict, path: Path) -> str:
    """
    What training uses of a file without errors.

    Args:
        content: of the annotation file.
        path: its path, for error messages.
    """
    file = records_of(content, path)
    drop_repeated(file)
    objects = [annotation for annotation in file.annotations if not annotation.iscrowd]
    num_masks = sum(annotation.mask is not None for annotation in objects)
    lines = [
        f"Training uses {len(objects):,} objects: {num_masks:,} with a mask, "
        f"{len(objects) - num_masks:,} with a box only."
    ]
    if file.left_out:
        counts = ", ".join(f"{number:,} {what}" for what, number in file.left_out.items())
        lines.append(f"Not used: {counts}.")
    if num_masks == 0:
        lines.append("There is no mask to learn from.")
    return "\n".join(lines)


def problem_report(problems: Iterable[Problem]) -> str:
    """All problems by kind, the worst first, each kind with its count and its first few places."""
    of_severity: dict[str, dict[str, list[Problem]]] = defaultdict(lambda: defaultdict(list))
    for problem in problems:
        of_severity[problem.severity][problem.kind].append(problem)
    lines = []
    for severity, title in _TITLES.items():
        if severity in of_severity:
            lines.append(f"{title}:")
        for kind, found in of_severity[severity].items():
            lines.append(f"  {kind}: {len(found)}")
            lines += [f"      {printable(p.where)}: {printable(p.detail)}" for p in found[:_MAX_NAMED]]
            if len(found) > _MAX_NAMED:
                lines.append(f"      and {len(found) - _MAX_NAMED} more")
    return "\n".join(lines)
