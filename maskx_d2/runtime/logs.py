"""Sends the logs of the backends to a file, while the screen shows progress bars."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from maskx_d2.data.files import check_replaceable
from maskx_d2.runtime.lock import LOCK_FILE

_LOGGERS = ("detectron2", "fvcore", "lightning", "maskx_d2", "py.warnings", "torch")


@contextlib.contextmanager
def log_to_file(path: Path, *, on_screen: Sequence[str] = ()) -> Iterator[None]:
    """
    Send the logs of the backends and the output of COCOeval to a file instead of the screen. If an error
    occurs while a new folder has nothing else in it, the folder is removed again.

    Args:
        path: path of the log file, which is appended to.
        on_screen: names of loggers whose messages are also shown on the screen, above progress bars.
    """
    if str(path) != os.devnull:
        check_replaceable(path)
    folder = path.parent
    is_new = not folder.exists() or [other.name for other in folder.iterdir()] == [LOCK_FILE]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _logging_to(path, on_screen):
            yield
    except Exception:
        if is_new and {other.name for other in folder.iterdir()} <= {path.name, LOCK_FILE}:
            path.unlink()
            with contextlib.suppress(OSError):  # it is locked; releasing the lock removes it
                folder.rmdir()
        raise


@contextlib.contextmanager
def _logging_to(path: Path, on_screen: Sequence[str]) -> Iterator[None]:
    logging.captureWarnings(True)
    shown = _OnScreen(sys.stdout)
    with path.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        handler = logging.StreamHandler(file)
        handler.setFormatter(logging.Formatter("[%(asctime)s %(name)s] %(levelname)s: %(message)s"))
        before = {}
        for logger in _loggers():
            before[logger] = (logger.handlers, logger.propagate, logger.level)
            of_host = logger.name in _LOGGERS
            logger.handlers, logger.propagate = ([handler] if of_host else []), not of_host
            logger.setLevel(logging.INFO)
        for name in on_screen:
            logging.getLogger(name).addHandler(shown)
        try:
            yield
        finally:
            for name in on_screen:
                logging.getLogger(name).removeHandler(shown)
            logging.captureWarnings(False)
            for logger, (handlers, propagate, level) in before.items():
                logger.handlers, logger.propagate = handlers, propagate
                logger.setLevel(level)


class _OnScreen(logging.Handler):
    def __init__(self, stream: TextIO):
        super().__init__()
        self.stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(file=sys.stderr):  # where the bars are
            print(self.format(record), file=self.stream, flush=True)


def _loggers() -> Iterator[logging.Logger]:
    """The backends' loggers, and those below them that have a handler of their own."""
    for name in _LOGGERS:
        yield logging.getLogger(name)
    for name, logger in list(logging.Logger.manager.loggerDict.items()):
        if (
            isinstance(logger, logging.Logger)
            and logger.handlers
            and name.startswith(tuple(f"{n}." for n in _LOGGERS))
        ):
            yield logger
