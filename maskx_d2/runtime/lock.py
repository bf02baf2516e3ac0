"""A lock on an output, so that one process at a time writes to it. Released when the process ends."""

import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from maskx_d2.data.errors import InputError
from maskx_d2.data.files import check_replaceable
from maskx_d2.data.printable import printable

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK_FILE = ".lock"
"""Name of the lock file in a locked folder. It names the process that holds the lock."""


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """
    Lock a folder while it is written to. It is created if it does not exist, and removed at the end if it
    is empty.

    Raises:
        ValueError: another process holds the lock (the message names it), or a link or a pipe is in its
            place.
    """
    with _made(folder), _locked(folder / LOCK_FILE, folder):
        yield


@contextlib.contextmanager
def locked_file(path: Path) -> Iterator[None]:
    """Like :func:`locked_folder`, for a single file. The lock file is beside it."""
    with _made(path.parent), _locked(path.with_name(f"{path.name}{LOCK_FILE}"), path):
        yield


def is_empty(folder: Path) -> bool:
    """Whether there is no such folder, or nothing in it but its lock."""
    if not folder.is_dir():
        return not folder.exists()
    return {path.name for path in folder.iterdir()} <= {LOCK_FILE}


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # something is in it
            for path in new:
                path.rmdir()


@contextlib.contextmanager
def _locked(path: Path, output: Path) -> Iterator[None]:
    if fcntl is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _warn(output)
        yield
        return
    file = _hold(path, output)
    try:
        with contextlib.suppress(OSError):  # if the disk is full, the command itself reports it
            os.ftruncate(file, 0)
            os.write(file, _this_process().encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(file)


def _hold(path: Path, output: Path) -> int:
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            check_replaceable(path)
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        except (FileNotFoundError, FileExistsError):
            if os.path.lexists(path.parent) and not path.parent.is_dir():
                raise
            continue  # the process that made the folder has just removed it
        try:
            # Unlike flock's, this lock also works on NFS, and workers that are forked do not inherit it.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            holder = printable(os.pread(file, 300, 0).decode("utf-8", "replace")) or "another process"
            os.close(file)
            raise InputError(
                f"{output} is being written to by {holder}: wait for it, or give another output"
            ) from None
        except OSError:
            _warn(output)
            return file
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), path.stat()):
                return file
        os.close(file)  # the process that held it has just removed the file


def _warn(output: Path) -> None:
    logging.getLogger(__name__).warning(
        "%s is on a file system without locks: do not run another command that writes there", output
    )


def _this_process() -> str:
    program = Path(sys.argv[0])
    name = program.parent.name if program.name == "__main__.py" else program.name
    command = " ".join([name, *sys.argv[1:2]])
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return f"process {os.getpid()} on {socket.gethostname()} ({command}, since {since})"
