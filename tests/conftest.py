import functools
import subprocess
import sys
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


@pytest.fixture(scope="session")
def run_quick_demo(tmp_path_factory):
    """Runs ``maskx demo --quick``, once for each host; returns its folder and what it printed."""

    @functools.cache
    def run(host: str) -> tuple[Path, str]:
        work = tmp_path_factory.mktemp(f"demo_{host}")
        command = [sys.executable, "-m", "maskx_d2", "demo", "--quick", "--host", host]
        # From a folder of its own, so that it is the installed package that runs.
        done = subprocess.run(
            [*command, "--output", str(work / "quick")], capture_output=True, text=True, cwd=work
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return work / "quick", done.stdout

    return run


@pytest.fixture(scope="session", params=["detectron2", "torchvision"])
def quick_demo(request, run_quick_demo):
    """The folder and the output of ``maskx demo --quick`` on each host."""
    if request.param == "detectron2" and find_spec("detectron2") is None:
        pytest.skip("needs Detectron2, which is not installed (make detectron2)")
    return run_quick_demo(request.param)


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
