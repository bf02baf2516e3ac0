"""Writing files so that none is ever half-written."""

import os
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write to a temporary name beside ``path``, then rename."""
    temporary = path.with_name(path.name + ".partial")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
