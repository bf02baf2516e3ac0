"""
Class splits: which classes have masks (A); the others have boxes only (B).

A split is named by ``"all"``, ``"voc"``, ``"nonvoc"``, ``"coco"`` (COCO's classes in a longer list),
``"E1_A20B60"`` ... ``"E5_A60B20"`` (the paper's random splits of COCO) or by the path of a text file with
one class name per line.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO

from maskx_d2.data.class_names import coco_class_names, indices_in, read_names, voc_class_names
from maskx_d2.data.errors import InputError, MissingFileError
from maskx_d2.data.printable import printable
from maskx_d2.data.pycocotools_coco import class_names as class_names_of

# Name -> number of classes with masks, in the order in which the original code draws them.
_RANDOM_SPLITS = {f"E{t}_A{n}B{80 - n}": n for t in range(1, 6) for n in (20, 30, 40, 50, 60)}

NAMED_SPLITS = ("all", "voc", "nonvoc", "coco", *_RANDOM_SPLITS)


def classes_with_masks(split: str, class_names: Sequence[str]) -> list[int]:
    """
    The classes of a dataset that have masks under a split.

    Args:
        split: a name in :data:`NAMED_SPLITS`, or the path of a text file with one class name per line
            (empty lines are skipped).
        class_names: the dataset's class names, in the order of their contiguous indices.

    Returns:
        The sorted contiguous indices of A.

    Raises:
        FileNotFoundError: ``split`` is neither a name nor a file.
        ValueError: the split does not fit the dataset: it names an unknown class, names a class twice, or
            leaves one side empty.
    """
    num_classes = len(class_names)
    if split == "all":
        return list(range(num_classes))
    what = f"split {split!r}"
    if split in ("voc", "nonvoc"):
        names = voc_class_names()
    elif split == "coco":
        names = coco_class_names()
    elif split in _RANDOM_SPLITS:
        coco = coco_class_names()
        names = [coco[i] for i in _random_split(split)]
    elif Path(split).is_file():
        what = f"split file {split}"
        names = read_names(Path(split))
    else:
        raise MissingFileError(
            f"class split {split!r} is neither a file nor one of all, voc, nonvoc, coco, "
            f"{NAMED_SPLITS[4]} ... {NAMED_SPLITS[-1]}"
        )
    indices = _indices_of(names, class_names, what)
    if split == "nonvoc":
        indices = sorted(set(range(num_classes)) - set(indices))
    if not indices:
        raise InputError(f"{what} gives masks to no class, expected at least one")
    if len(indices) == num_classes:
        raise InputError(
            f"{what} gives masks to all {num_classes} classes, which leaves none with boxes only: use 'all'"
        )
    return indices


def class_split_report(split: str, coco: COCO | None = None, *, as_json: bool = False) -> str:
    """
    The classes on each side of a split, as text for users or as JSON
    ``{"with_masks": [names], "boxes_only": [names]}``.

    Args:
        split: see :func:`classes_with_masks`.
        coco: the dataset; without one, COCO's 80 classes.
        as_json: whether to return JSON.
    """
    names = coco_class_names() if coco is None else class_names_of(coco)
    with_masks = classes_with_masks(split, names)
    sides = {
        "with_masks": with_masks,
        "boxes_only": sorted(set(range(len(names))) - set(with_masks)),
    }
    if as_json:
        return json.dumps({side: [names[i] for i in indices] for side, indices in sides.items()})
    lines = []
    for title, indices in zip(("A, with masks", "B, boxes only"), sides.values(), strict=True):
        count = f"{len(indices)} classes"
        if coco is not None:
            category_ids = sorted(coco.cats)
            ids = {category_ids[i] for i in indices}
            instances = sum(a["category_id"] in ids for a in coco.dataset["annotations"])
            count += f", {instances} instances"
        lines.append(f"{title} ({count}): {', '.join(printable(names[i]) for i in indices)}")
    return "\n".join(lines)


def _random_split(name: str) -> list[int]:
    """COCO class indices of a random split. Each draw depends on the previous ones."""
    generator = np.random.RandomState(3)
    draws = {n: generator.choice(80, size, replace=False) for n, size in _RANDOM_SPLITS.items()}
    return draws[name].tolist()


def _indices_of(names: Sequence[str], class_names: Sequence[str], what: str) -> list[int]:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(f"{what} names {', '.join(map(repr, twice))} twice")
    return sorted(indices_in(class_names, names, what=what))
