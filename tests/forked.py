"""
Commands in processes that are forked from this one. As in a process of their own, signals stop them and
nothing of them is left; but they need not import torch, which takes most of the time of a short run.
"""

import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable


class Forked:
    """A command that runs in a forked process. Has the usual methods of ``subprocess.Popen``."""

    def __init__(self, command: Callable[[], None]):
        """
        Args:
            command: called in the other process, which ends with it.
        """
        self.returncode: int | None = None
        self._files = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115, of its output
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(command)

    def _run(self, command: Callable[[], None]) -> None:
        for descriptor, file in zip((1, 2), self._files, strict=True):
            os.dup2(file.fileno(), descriptor)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, closefd=False) for number in (1, 2))
        status = 1
        try:
            command()
            status = 0
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def poll(self) -> int | None:
        """Exit status as of ``subprocess``, or None if it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float = 120) -> int:
        """Wait for its end. If it takes too long it is killed, which its exit status then says."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.send_signal(signal.SIGKILL)
            time.sleep(0.01)
        return self.returncode

    @property
    def stdout(self) -> str:
        """What it has printed."""
        return self._content(0)

    @property
    def stderr(self) -> str:
        return self._content(1)

    def _content(self, number: int) -> str:
        self._files[number].seek(0)
        return self._files[number].read()


def run_forked(command: Callable[[], None]) -> Forked:
    """Run a command to its end in a forked process."""
    forked = Forked(command)
    forked.wait()
    return forked
