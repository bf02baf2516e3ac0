"""Outputs of commands: they replace no input, follow no link, and have one writer at a time."""

import contextlib
import fnmatch
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from maskx_d2.data.addresses import is_address
from maskx_d2.data.errors import InputError
from maskx_d2.data.files import check_no_link, check_replaceable, real_path
from maskx_d2.runtime.lock import locked_file, locked_folder

_PICTURES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_VIDEOS = (".avi", ".mkv", ".mov", ".mp4")


@dataclass(frozen=True)
class OutputFile:
    """A file that a command writes."""

    path: Path

    def replaces(self, file: Path) -> bool:
        """Whether writing it replaces the file."""
        return real_path(self.path) == file

    def check(self) -> None:
        """
        Raises:
            ValueError: it is a link, a pipe, a device or a folder.
        """
        check_replaceable(self.path)

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """See :func:`maskx_d2.runtime.lock.locked_file`."""
        return locked_file(self.path)


@dataclass(frozen=True)
class OutputFolder:
    """A folder that a command writes files into."""

    path: Path
    names: tuple[str, ...]
    """Patterns for the names of those files; ``folder/*`` matches everything below a folder."""

    def replaces(self, file: Path) -> bool:
        """Whether one of its files replaces the file."""
        folder = real_path(self.path)
        if not file.is_relative_to(folder):
            return False
        name = file.relative_to(folder).as_posix()
        return any(fnmatch.fnmatchcase(name, n) for n in self.names if ("/" in n) >= ("/" in name))

    def check(self) -> None:
        """
        Raises:
            ValueError: it is not a folder, or one of its files is a link, a pipe or a device.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is not a folder")
        for path in self.path.iterdir() if self.path.is_dir() else ():
            if any(fnmatch.fnmatchcase(path.name, name) for name in self.names):
                check_replaceable(path)
            elif any(fnmatch.fnmatchcase(f"{path.name}/", name) for name in self.names):
                check_no_link(path)
                for inside in path.rglob("*") if path.is_dir() else ():
                    check_no_link(inside)

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """See :func:`maskx_d2.runtime.lock.locked_folder`."""
        return locked_folder(self.path)


@contextlib.contextmanager
def writing(
    outputs: Iterable[OutputFile | OutputFolder], inputs: Iterable[str | Path | None]
) -> Iterator[None]:
    """
    Check outputs, and lock them while they are written. Every command that writes files uses this.

    Args:
        outputs: files and folders that are written.
        inputs: files and folders that are read. Files that a YAML config names are inputs too. URLs and
            None are ignored.

    Raises:
        ValueError: an output would replace an input, is a link or a pipe, or another process is writing it.
    """
    outputs = list(outputs)
    check_outputs(outputs, inputs)
    with contextlib.ExitStack() as locks:
        for output in outputs:
            locks.enter_context(output.locked())
        yield


def check_outputs(
    outputs: Iterable[OutputFile | OutputFolder], inputs: Iterable[str | Path | None]
) -> None:
    """
    Raises:
        ValueError: an output would replace an input, or is a link, a pipe or a device.
    """
    paths = [Path(path) for path in inputs if path is not None and not is_address(path)]
    for path in paths:  # those of configs, and of the configs that they name, are added to the list
        paths += [named for named in _named_in_config(path) if named not in paths]
    for output in outputs:
        for path in paths:
            if path.is_dir():
                _check_is_no_image(output, path)
            elif output.replaces(real_path(path)):
                raise InputError(f"the output would overwrite its input {path}: give another output")
        output.check()


def _check_is_no_image(output: OutputFile | OutputFolder, folder: Path) -> None:
    is_image = isinstance(output, OutputFile) and output.path.suffix.lower() in (*_PICTURES, *_VIDEOS)
    if is_image and real_path(output.path).is_relative_to(real_path(folder)):
        raise InputError(f"{output.path} would be among the images of {folder}: give another output")


def named_files(value: object, *, folder: Path | None = None) -> list[Path]:
    """
    Existing files and folders that are named by strings in a config.

    Args:
        value: a string, or nested mappings and sequences.
        folder: a second folder that paths can be relative to, beside the current one.
    """
    if isinstance(value, Mapping):
        return [path for item in value.values() for path in named_files(item, folder=folder)]
    if isinstance(value, list | tuple):
        return [path for item in value for path in named_files(item, folder=folder)]
    found = []
    if isinstance(value, str | Path) and str(value) and not is_address(value):
        for path in (Path(value), *([folder / value] if folder else [])):
            with contextlib.suppress(OSError, ValueError):  # too long for a name, or with a NUL in it
                found += [path] if path.exists() else []
    return found


def _named_in_config(path: Path) -> list[Path]:
    """Nothing for a config that cannot be read: the error comes from the code that reads it."""
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        return []
    with contextlib.suppress(OSError, ValueError, RecursionError, yaml.YAMLError):
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        return named_files(list(_scalars(root, set())), folder=path.parent)
    return []


def _scalars(node: yaml.Node | None, seen: set[int]) -> Iterator[str]:
    if isinstance(node, yaml.ScalarNode):
        yield node.value
    elif node is not None and id(node) not in seen:
        seen.add(id(node))
        for child in node.value:
            for part in child if isinstance(child, tuple) else (child,):
                yield from _scalars(part, seen)
