"""How a command ends: with a one-sentence message, and an exit status that says who can fix it."""

import builtins
import contextlib
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator

from maskx_d2.data.errors import InputError, MissingFileError
from maskx_d2.data.printable import printable

FOUND_ERRORS = 1
"""The command did its work, but some of its input is broken."""

MISTAKE = 2
"""A mistake of the user in options or files; see :class:`maskx_d2.data.errors.InputError`."""

FAULT = 3
"""An unexpected error of the program, or of the system that it runs on."""

_LONGEST = 2000  # characters of a sentence
_SECONDS_TOGETHER = 1
_FROM_SYSTEM = re.compile(r"\[Errno \d+\] .+: ['\"]")  # an OSError that names a file
_WORKER_GONE = re.compile(r"DataLoader worker \(pid.*\) (is killed by signal|exited unexpectedly)")
_FROM_OTHER_PROCESS = re.compile(r"^Traceback \(most recent call last\)|^Original Traceback", re.MULTILINE)


@contextlib.contextmanager
def one_sentence(program: str, *, show_traceback: bool) -> Iterator[None]:
    """
    Turn errors and signals into exits: a sentence on stderr, and status :data:`MISTAKE`, :data:`FAULT`, or
    128 + the signal number.

    Args:
        program: name of the program, with which the sentence starts.
        show_traceback: whether to also print the traceback of an error.
    """
    with _exit_on_signals(program):
        try:
            yield
        except BrokenPipeError:
            # As in `maskx splits voc | head -1`. Python would fail on the pipe again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(128 + signal.SIGPIPE)
        except Exception as error:
            if show_traceback:
                traceback.print_exc()
            kind, sentence = _kind_and_sentence(error)
            foreseen = _is_foreseen(kind, sentence)
            if _WORKER_GONE.search(sentence):
                sentence += (
                    " It was loading images. If memory is short, use fewer workers: --data.num_workers, "
                    "DATALOADER.NUM_WORKERS"
                )
            elif not foreseen:
                sentence = f"{kind}: {sentence}".rstrip(": ")
                sentence += "" if show_traceback else " (--traceback as the first option shows where)"
            if len(sentence) > _LONGEST:
                sentence = f"{sentence[: _LONGEST // 2]} ... {sentence[-_LONGEST // 2 :]}"
            print(f"{program}: {sentence}", file=sys.stderr)
            sys.exit(MISTAKE if foreseen else FAULT)


def _is_foreseen(kind: str, sentence: str) -> bool:
    """
    Whether the user can fix it: an :class:`InputError`, a file that the system refuses (a full disk,
    permissions), or a loss that is not finite. Checked by name, as an error may come from another process.
    """
    if issubclass(getattr(builtins, kind, Exception), OSError):
        return _FROM_SYSTEM.match(sentence) is not None
    return kind in (InputError.__name__, MissingFileError.__name__, FloatingPointError.__name__)


def _kind_and_sentence(error: Exception) -> tuple[str, str]:
    """Type and message of an error; if another process passed it on, those of the original error."""
    kind, text = type(error).__name__, str(error).strip()
    if _FROM_OTHER_PROCESS.search(text):
        text = text.splitlines()[-1]
        if named := re.match(r"[\w.]*?(\w+(?:Error|Exception)): (.*)", text):
            kind, text = named.groups()
    return kind, printable(text)


class DeferredSignals:
    """
    Remembers Ctrl-C and SIGTERM instead of obeying them, for a training loop that checks :attr:`number` at
    a suitable time. A second signal is obeyed at once, unless it arrives together with the first, as in a
    process that is signalled both by its parent and as a member of a group.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        """Number of the signal that was received."""

        self._since = 0.0
        self._handlers: dict[int, object] = {}

    def defer(self) -> None:
        """Start to defer signals. Forked processes remember their own."""
        self.number = None
        if threading.current_thread() is threading.main_thread():
            self._handlers = {n: signal.signal(n, self._remember) for n in (signal.SIGINT, signal.SIGTERM)}

    def obey(self) -> None:
        """Restore the previous handlers."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _remember(self, number: int, frame) -> None:
        if self.number is None:
            self.number, self._since = number, time.monotonic()
        elif time.monotonic() - self._since > _SECONDS_TOGETHER:
            sys.exit(128 + number)


@contextlib.contextmanager
def _exit_on_signals(program: str) -> Iterator[None]:
    """On Ctrl-C and SIGTERM, exit so that open files are closed and half-written files are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process = os.getpid()

    def leave(number: int, frame) -> None:
        if os.getpid() == process:  # not one that loads data for it
            print(f"\n{program}: stopped by {signal.Signals(number).name}", file=sys.stderr)
            if number == signal.SIGTERM:  # on Ctrl-C the terminal signals them
                for child in multiprocessing.active_children():
                    child.terminate()
        sys.exit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
