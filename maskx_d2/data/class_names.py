"""Lists of class names, and finding the classes of one list in a longer one."""

import re
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from maskx_d2.data.coco_file import read_coco_file
from maskx_d2.data.errors import InputError, MissingFileError

_SENSE = re.compile(r"\.[a-z]\.\d+$")  # part of speech and number
_CLASS_LISTS = Path(__file__).parent / "class_lists"


def coco_class_names() -> list[str]:
    """The 80 classes of COCO in the order of their contiguous indices."""
    return read_names(_CLASS_LISTS / "coco.txt")


def voc_class_names() -> list[str]:
    """The 20 classes of PASCAL VOC under their COCO names."""
    return read_names(_CLASS_LISTS / "voc.txt")


def visual_genome_class_names() -> list[str]:
    """
    The 3,001 classes of the Visual Genome experiments in the original code, in its order: first those of
    COCO, in COCO's order. They are synsets without part of speech and number, so some share a name.
    """
    return read_names(_CLASS_LISTS / "visual_genome.txt")


def readable_visual_genome_class_names() -> list[str]:
    """Readable names of the same classes; the first 80 have COCO's: "fire hydrant" for "water_faucet"."""
    coco = coco_class_names()
    return coco + [name.replace("_", " ") for name in visual_genome_class_names()[len(coco) :]]


def read_class_names(path: Path | None) -> list[str]:
    """
    Read class names, in the order of their contiguous indices, from an annotation file in COCO format
    (``.json``) or from a text file with one name per line; those of COCO if ``path`` is None.
    """
    if path is None:
        return coco_class_names()
    if path.suffix.lower() == ".json":
        return read_coco_file(path).class_names
    if not path.is_file():
        raise MissingFileError(f"class name file {path} is not a file")
    names = read_names(path)
    if not names:
        raise InputError(f"class name file {path} is empty, expected one name per line")
    return names


def read_names(path: Path) -> list[str]:
    """Read one name per line; empty lines are skipped."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors begin a file with a mark
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text in UTF-8: {error}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def name_of_synset(synset: str) -> str:
    """``fire_truck.n.01`` -> ``fire_truck``; any other name stays as it is."""
    return _SENSE.sub("", synset)


def first_difference(
    names: Sequence[str], others: Sequence[str]
) -> tuple[int, str | None, str | None] | None:
    """Index and names of the first difference of two class lists (None past the end of one), or None."""
    pairs = enumerate(zip_longest(names, others))
    return next(((i, a, b) for i, (a, b) in pairs if a != b), None)


def match_classes(names: Sequence[str], others: Sequence[str], *, what: str) -> list[int]:
    """
    Match the same classes in two orders by name.

    Args:
        names: the classes of a model.
        others: the classes of a dataset.
        what: the dataset, for the error message.

    Returns:
        For each class of the model, its index in the dataset.

    Raises:
        ValueError: the classes are not the same.
    """
    if list(names) == list(others):  # also where several classes share a name
        return list(range(len(names)))
    missing, more = sorted(set(names) - set(others)), sorted(set(others) - set(names))
    if missing or more or len(set(names)) < len(names) or len(names) != len(others):
        found = [f"lacks {_listed(missing)}"] * bool(missing) + [f"has {_listed(more)}"] * bool(more)
        difference = " and ".join(found) or "has some of them twice"
        raise InputError(
            f"{what} has other classes than the model: it {difference}, expected the model's {len(names)} "
            f"classes: {_listed(names)}"
        )
    index_of = {name: index for index, name in enumerate(others)}
    return [index_of[name] for name in names]


def _listed(names: Sequence[str], number: int = 5) -> str:
    more = f" and {len(names) - number} more" if len(names) > number else ""
    return ", ".join(map(repr, names[:number])) + more


def indices_in(class_list: Sequence[str], names: Sequence[str], *, what: str) -> list[int]:
    """
    Indices of names in a class list. If several classes share a name, the first is taken; in a list that
    starts with COCO's classes, that is COCO's.

    Args:
        class_list: all classes.
        names: some of them.
        what: where the names come from, for the error message.

    Raises:
        ValueError: ``class_list`` does not contain all names.
    """
    index_of = {name: i for i, name in reversed(list(enumerate(class_list)))}
    missing = [name for name in names if name not in index_of]
    if missing:
        raise InputError(
            f"{what} names {_listed(missing)}, "
            f"which the dataset's {len(class_list)} classes do not include: "
            f"{', '.join(class_list[:5])}{', ...' if len(class_list) > 5 else ''}"
        )
    return [index_of[name] for name in names]
