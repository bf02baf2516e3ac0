"""Reading annotation files: as a :class:`CocoFile` for training, or as the content of the JSON."""

import contextlib
import gc
import mmap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET

from maskx_d2.data.coco_errors import Problem, category_errors, errors, id_errors, measure, typed
from maskx_d2.data.coco_format import PARTS, CocoFile, in_order, is_id, make_whole, put_in_order
from maskx_d2.data.errors import InputError
from maskx_d2.data.files import load_json
from maskx_d2.data.usable_objects import drop_repeated, keep_usable

_Content = TypeVar("_Content")


def read_coco_file(path: Path, *, needs_annotations: bool = True, keep_repeated: bool = False) -> CocoFile:
    """
    Read and check an annotation file, and bring it into the form that is used: see :func:`keep_usable` and
    :func:`drop_repeated`.

    Args:
        path: of the file.
        needs_annotations: whether a file without ``annotations``, as COCO's test-dev, is refused; otherwise
            it has none.
        keep_repeated: whether objects that are listed twice are kept.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it is not JSON, or something in it cannot be used: the first such thing is named.
    """
    with _without_collector():
        file = _decoded(path, CocoFile)
        if file is not None and file.annotations is UNSET and not needs_annotations:
            file.annotations = []
        is_whole = file is not None and file.annotations is not UNSET and _have_ids(file.categories)
        if not is_whole or not _checks(path, file):
            file = _read_slowly(path, needs_annotations=needs_annotations)
        if not keep_repeated:
            drop_repeated(file)
        return file


def _checks(path: Path, file: CocoFile) -> bool:
    """Whether a file has no errors; it is brought into the form that is used."""
    put_in_order(file)
    try:
        _check(path, file)
    except InputError:
        return False
    return True


def _read_slowly(path: Path, *, needs_annotations: bool) -> CocoFile:
    """By Python's JSON parser, which reads NaN, and after which all that is wrong can be named."""
    return records_of(read_json(path, needs_annotations=needs_annotations), path)


def read_categories(path: Path) -> list[dict[str, Any]]:
    """
    The categories of an annotation file in the order of their ids. Nothing else of the file is checked,
    unless several have the same name.

    Raises:
        FileNotFoundError, InputError: see :func:`read_coco_file`.
    """
    file = _decoded(path, _Categories)
    if file is None or not _have_ids(file.categories) or any(category_errors(file.categories)):
        return read_coco_file(path).categories
    if len({category["name"] for category in file.categories}) < len(file.categories):
        return read_coco_file(path).categories
    return in_order(file.categories)


def _have_ids(categories: list[dict]) -> bool:
    return all(is_id(category.get("id")) for category in categories)


class _Categories(msgspec.Struct):
    categories: list[dict[str, Any]]


def read_json(path: Path, *, needs_annotations: bool = True) -> dict:
    """
    The content of an annotation file, unchecked; see :func:`make_whole`.

    Args:
        path, needs_annotations: see :func:`read_coco_file`.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it is not JSON, or a part of COCO's format is missing.
    """
    content = load_json(path, what="annotation file")
    if not needs_annotations and isinstance(content, dict):
        content.setdefault("annotations", [])
    for part in PARTS:
        records = content.get(part) if isinstance(content, dict) else None
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            raise InputError(f"annotation file {path} has no list {part!r}, expected {', '.join(PARTS)}")
    make_whole(content)
    return content


def records_of(content: dict, path: Path) -> CocoFile:
    """
    What :func:`read_coco_file` returns, from the content of the JSON, with objects that are listed twice.

    Args:
        content: see :func:`read_json`; it is not changed.
        path: path of the file, for error messages.

    Raises:
        InputError: see :func:`read_coco_file`.
    """
    _raise_first(path, id_errors(content))
    file, problems = typed(content)
    _check(path, file, problems)
    return file


def _check(path: Path, file: CocoFile, problems: Iterable[Problem] = ()) -> None:
    measures = measure(file)
    _raise_first(path, [*problems, *errors(file, measures)])
    file.categories = in_order(file.categories)
    keep_usable(file, measures)


def _raise_first(path: Path, problems: Iterable[Problem]) -> None:
    found = list(problems)
    if found:
        first = found[0]
        more = f" ({len(found) - 1} more: maskx check-dataset lists them)" if len(found) > 1 else ""
        raise InputError(f"annotation file {path}: {first.where} {first.detail}{more}")


def _decoded(path: Path, kind: type[_Content]) -> _Content | None:
    """None if there is no such file, or something else in it."""
    if not path.is_file() or path.stat().st_size == 0:
        return None
    try:
        with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError):
        return None


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Python's search for cycles visits every object again and again, and finds none here."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
