"""Handling Ctrl-C before a command has started, while libraries are imported."""

import multiprocessing
import os
import signal
import sys
import threading
from pathlib import Path

_SCRIPTS = ("maskx", "maskx.exe", "train_net.py")


def exit_on_ctrl_c() -> None:
    """
    From now on, Ctrl-C ends this process with one line, if it is one of this project's commands. Other
    programs that import the package are not affected.
    """
    is_first = multiprocessing.parent_process() is None
    is_main_thread = threading.current_thread() is threading.main_thread()
    if not (_is_command(sys.orig_argv) and is_first and is_main_thread):
        return
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def _is_command(words: list[str]) -> bool:
    if "-m" in words:
        return words[words.index("-m") + 1 :][:1] == ["maskx_d2"]
    return any(Path(word).name in _SCRIPTS for word in words[1:2])


def _leave(number: int, frame) -> None:
    print("\nmaskx: stopped by SIGINT", file=sys.stderr, flush=True)
    os._exit(128 + number)  # an exception would be raised in the middle of some library
