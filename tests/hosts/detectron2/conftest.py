from importlib.util import find_spec
from pathlib import Path

import pytest

HAS_DETECTRON2 = find_spec("detectron2") is not None


class _NeedsDetectron2(pytest.Module):
    def collect(self):
        raise pytest.skip.Exception(
            "needs Detectron2, which is not installed (make detectron2)", allow_module_level=True
        )


def pytest_pycollect_makemodule(module_path, parent):
    return None if HAS_DETECTRON2 else _NeedsDetectron2.from_parent(parent, path=module_path)


@pytest.fixture(scope="session")
def shapes_dataset(tmp_path_factory):
    """24 training and 8 test images of the demo's dataset."""
    from maskx_d2.data import shapes

    return shapes.generate(tmp_path_factory.mktemp("shapes"), num_train=24, num_test=8, seed=0)


@pytest.fixture(scope="session")
def quick_demo(tmp_path_factory):
    """The folder and the output of ``maskx demo --quick``."""
    import subprocess
    import sys

    folder: Path = tmp_path_factory.mktemp("demo") / "quick"
    command = [sys.executable, "-m", "maskx_d2", "demo", "--quick", "--output", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done.stdout
