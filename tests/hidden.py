"""Processes that do not find Detectron2, which each of them takes seconds to import."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

HIDE_DETECTRON2 = """
import importlib.machinery, sys

class Hide(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name == "detectron2" else super().find_spec(name, path, target)

sys.meta_path = [Hide if f is importlib.machinery.PathFinder else f for f in sys.meta_path]
"""


@contextlib.contextmanager
def detectron2_hidden_in_processes(folder: Path) -> Iterator[None]:
    """
    Args:
        folder: for a file that processes start with.
    """
    (folder / "sitecustomize.py").write_text(HIDE_DETECTRON2)
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        yield
