"""
Class splits: which classes have masks (A); the others have boxes only (B).

A split is named by ``"all"``, ``"voc"``, ``"nonvoc"``, ``"E1_A20B60"`` ... ``"E5_A60B20"`` (the paper's
random splits of COCO) or by the path of a text file with one class name a line.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

_CLASS_LISTS = Path(__file__).parent / "class_lists"
# Name -> number of classes with masks, in the order in which the original code draws them.
_RANDOM_SPLITS = {f"E{t}_A{n}B{80 - n}": n for t in range(1, 6) for n in (20, 30, 40, 50, 60)}

NAMED_SPLITS = ("all", "voc", "nonvoc", *_RANDOM_SPLITS)


def classes_with_masks(split: str, class_names: Sequence[str]) -> list[int]:
    """
    The classes of a dataset that have masks under a split.

    Args:
        split: a name in :data:`NAMED_SPLITS` or the path of a text file with one class name a line
            (empty lines are passed over).
        class_names: the dataset's class names, in the order of their contiguous indices.

    Returns:
        The sorted contiguous indices of A.

    Raises:
        FileNotFoundError: ``split`` is neither a name nor a file.
        ValueError: the split does not fit the dataset: a class that it does not have, a class listed
            twice, or nothing on one side.
    """
    if split == "all":
        return list(range(len(class_names)))
    if split == "voc":
        return _indices_of(_read_names(_CLASS_LISTS / "voc.txt"), class_names, "split 'voc'")
    if split == "nonvoc":
        return sorted(set(range(len(class_names))) - set(classes_with_masks("voc", class_names)))
    if split in _RANDOM_SPLITS:
        coco = _read_names(_CLASS_LISTS / "coco.txt")
        names = [coco[i] for i in _random_split(split)]
        return _indices_of(names, class_names, f"split {split!r}")
    path = Path(split)
    if not path.is_file():
        raise FileNotFoundError(
            f"class split {split!r} is neither a file nor one of all, voc, nonvoc, "
            f"{NAMED_SPLITS[3]} ... {NAMED_SPLITS[-1]}"
        )
    indices = _indices_of(_read_names(path), class_names, f"split file {path}")
    if not indices:
        raise ValueError(f"split file {path} names no class, expected one class name a line")
    if len(indices) == len(class_names):
        raise ValueError(
            f"split file {path} names all {len(class_names)} classes, which leaves none with boxes "
            "only: use 'all'"
        )
    return indices


def _random_split(name: str) -> list[int]:
    """COCO class indices of a random split: each draw depends on those before it."""
    generator = np.random.RandomState(3)
    draws = {n: generator.choice(80, size, replace=False) for n, size in _RANDOM_SPLITS.items()}
    return draws[name].tolist()


def _read_names(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _indices_of(names: Sequence[str], class_names: Sequence[str], what: str) -> list[int]:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{what} names {', '.join(map(repr, twice))} twice")
    index_of = {name: i for i, name in enumerate(class_names)}
    missing = [name for name in names if name not in index_of]
    if missing:
        raise ValueError(
            f"{what} names {', '.join(map(repr, missing[:5]))}"
            f"{f' and {len(missing) - 5} more' if len(missing) > 5 else ''}, "
            f"which the dataset's {len(class_names)} classes do not include: "
            f"{', '.join(class_names[:5])}{', ...' if len(class_names) > 5 else ''}"
        )
    return sorted(index_of[name] for name in names)
