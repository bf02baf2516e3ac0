"""A progress bar for terminals and for log files."""

import sys

from tqdm import tqdm

_SECONDS_IN_A_FILE = 30


def progress_bar(total: int, title: str, *, unit: str, initial: int = 0, leave: bool = True) -> tqdm:
    """A bar on stderr with the time left; if stderr is not a terminal, a line every half minute."""
    return tqdm(
        total=total,
        initial=initial,
        desc=title,
        unit=unit,
        leave=leave,
        file=sys.stderr,
        mininterval=0.1 if sys.stderr.isatty() else _SECONDS_IN_A_FILE,
    )
