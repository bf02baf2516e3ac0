"""Logs of the hosts, for programs whose screen shows progress bars instead."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

_LOGGERS = ("detectron2", "fvcore", "lightning", "maskx_d2", "py.warnings", "torch")


@contextlib.contextmanager
def log_to_file(path: Path) -> Iterator[None]:
    """Send what the hosts log and what COCOeval prints to a file instead of the screen."""
    path.parent.mkdir(parents=True, exist_ok=True)
    logging.captureWarnings(True)
    with path.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        handler = logging.StreamHandler(file)
        handler.setFormatter(logging.Formatter("[%(asctime)s %(name)s] %(levelname)s: %(message)s"))
        before = {}
        for logger in _loggers():
            before[logger] = (logger.handlers, logger.propagate, logger.level)
            of_host = logger.name in _LOGGERS
            logger.handlers, logger.propagate = ([handler] if of_host else []), not of_host
            logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            logging.captureWarnings(False)
            for logger, (handlers, propagate, level) in before.items():
                logger.handlers, logger.propagate = handlers, propagate
                logger.setLevel(level)


def _loggers() -> Iterator[logging.Logger]:
    """The hosts' loggers, and those below them that have a handler of their own."""
    for name in _LOGGERS:
        yield logging.getLogger(name)
    for name, logger in list(logging.Logger.manager.loggerDict.items()):
        if (
            isinstance(logger, logging.Logger)
            and logger.handlers
            and name.startswith(tuple(f"{n}." for n in _LOGGERS))
        ):
            yield logger
