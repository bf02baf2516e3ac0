import os
import signal
import subprocess
import sys
import tarfile
from importlib.util import find_spec
from pathlib import Path

import filelock
import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

# The suite's examples are the same each time; `make fuzz` draws others, for as long as it is given.
settings.register_profile(
    "suite",
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate),
)
settings.register_profile(
    "fuzz", max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("MASKX_D2_HYPOTHESIS", "suite"))

# A shell that starts the suite in the background makes it ignore Ctrl-C, and all that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_terminal_summary(terminalreporter):
    if find_spec("detectron2") is None:
        terminalreporter.line("Detectron2 is not installed: its tests were skipped.")
    else:
        terminalreporter.line("Detectron2 is installed: its tests ran.")


LONGEST = (
    "demo/test_run.py",
    "test_benchmarks.py",
    "backends/detectron2/test_visual_genome_end_to_end.py",
    "backends/torchvision/test_training.py",
    "inference/test_ray_data.py",
    "test_docs.py",
    "backends/detectron2/test_train_net.py",
    "backends/detectron2/test_distributed.py",
    "backends/torchvision/test_predict.py",
    "backends/detectron2/test_predict.py",
    "app/test_page.py",
    "teachers/test_promptable.py",
    "backends/detectron2/test_overfitting.py",
    "backends/detectron2/test_trainer.py",
    "backends/detectron2/test_export.py",
)


def pytest_collection_modifyitems(items):
    """Of a suite that several processes run (``-n``), the longest files first, before all the demo."""

    def place(item) -> int:
        name = item.path.relative_to(Path(__file__).parent).as_posix()
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=place)


@pytest.fixture(scope="session")
def quick_demo(tmp_path_factory):
    """
    The folder and the output of ``maskx demo --quick``, on Detectron2 where it is installed and else on
    torchvision. Where several processes run the suite, one of them makes it for all.
    """
    shared = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        shared = shared.parent
    work, output = shared / "demo", shared / "demo.txt"
    with filelock.FileLock(shared / "demo.lock"):
        if not output.is_file():
            work.mkdir()
            output.write_text(_run_quick_demo(work), encoding="utf-8")
    return work / "quick", output.read_text(encoding="utf-8")


def _run_quick_demo(work: Path) -> str:
    """What it prints."""
    command = [sys.executable, "-m", "maskx_d2", "demo", "--quick", "--output", str(work / "quick")]
    # From a folder of its own, so that it is the installed package that runs.
    done = subprocess.run(command, capture_output=True, text=True, cwd=work)
    assert done.returncode == 0, done.stderr[-3000:]
    backend = "detectron2" if find_spec("detectron2") else "torchvision"
    assert f"Training with {backend}." in done.stderr
    return done.stdout


@pytest.fixture
def runs_0_2_0(tmp_path, monkeypatch) -> Path:
    """The current folder, with a run folder of each backend as 0.2.0 left it: see tests/runs_0_2_0."""
    with tarfile.open(Path(__file__).parent / "runs_0_2_0" / "runs.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


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
