import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

# The suite's examples are the same each time; `make fuzz` draws others, for as long as it is given.
settings.register_profile(
    "suite",
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate),
)
settings.register_profile(
    "fuzz", max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("MASKX_D2_HYPOTHESIS", "suite"))

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_terminal_summary(terminalreporter):
    if find_spec("detectron2") is None:
        terminalreporter.line("Detectron2 is not installed: its tests were skipped.")
    else:
        terminalreporter.line("Detectron2 is installed: its tests ran.")


def pytest_collection_modifyitems(items):
    """
    Of a suite that several processes run (``-n``), the tests of a file stay together, for what they share;
    those that share the demo are first, for it is the longest.
    """
    items.sort(key=lambda item: "quick_demo" not in item.fixturenames)
    for item in items:
        group = "demo" if "quick_demo" in item.fixturenames else item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def quick_demo(tmp_path_factory):
    """
    The folder and the output of ``maskx demo --quick``, on Detectron2 where it is installed and else on
    torchvision.
    """
    work = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "maskx_d2", "demo", "--quick", "--output", str(work / "quick")]
    # From a folder of its own, so that it is the installed package that runs.
    done = subprocess.run(command, capture_output=True, text=True, cwd=work)
    assert done.returncode == 0, done.stderr[-3000:]
    host = "detectron2" if find_spec("detectron2") else "torchvision"
    assert f"Training with {host}." in done.stderr
    return work / "quick", done.stdout


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
