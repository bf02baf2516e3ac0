from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_terminal_summary(terminalreporter):
    if find_spec("detectron2") is None:
        terminalreporter.line("Detectron2 is not installed: its tests were skipped.")
    else:
        terminalreporter.line("Detectron2 is installed: its tests ran.")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def coco_mini() -> Path:
    """159 real COCO images with their annotations, in COCO's own layout."""
    folder = SHARED_DATA / "coco-mini"
    if not folder.is_dir():
        pytest.skip("the coco-mini images are not beside this checkout")
    return folder
