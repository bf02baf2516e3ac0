"""What a run leaves on the screen."""

import re


def assert_says_nothing_but_bars(stderr: str, *titles: str) -> None:
    """That these progress bars are there, and no warning or other line is."""
    lines = [line for line in re.split(r"[\r\n]|\x1b\[A", stderr) if line.strip()]
    shown = {line.split(":")[0].strip() for line in lines}
    assert shown == set(titles), stderr
