"""The rules of which part may import which."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "maskx_d2"
BACKEND_LIBRARIES = {
    "detectron2": {"detectron2", "fvcore", "iopath"},
    "torchvision": {"torchvision", "lightning", "jsonargparse"},
}
ALL_BACKEND_LIBRARIES = set().union(*BACKEND_LIBRARIES.values())


def imports(path, top_level_only=False):
    """Full names of the modules that a file imports."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide what is imported"
            yield node.module


def files(part):
    found = sorted((PACKAGE / part).rglob("*.py"))
    assert found
    return found


def library(name):
    return name.split(".")[0]


def test_method_imports_torch_and_nothing_else():
    for path in files("method"):
        for name in imports(path):
            own = name.startswith("maskx_d2.method")
            assert own or library(name) in {"torch", "collections", "itertools", "math", "typing"}, (
                f"{path}: {name}"
            )


def test_data_and_evaluation_import_neither_torch_nor_a_backend():
    for part, allowed in (("data", {"data"}), ("evaluation", {"data", "evaluation"})):
        for path in files(part):
            for name in imports(path):
                assert library(name) not in {"torch", *ALL_BACKEND_LIBRARIES}, f"{path}: {name}"
                if library(name) == "maskx_d2":
                    assert name.split(".")[1] in allowed, f"{path}: {name}"


def test_a_backend_is_imported_at_import_time_by_itself_and_by_registration_alone():
    for path in PACKAGE.rglob("*.py"):
        backend = path.relative_to(PACKAGE).parts[1] if "backends" in path.parts else None
        for name in imports(path, top_level_only=True):
            if name.startswith("maskx_d2.backends"):
                assert backend and name.startswith(f"maskx_d2.backends.{backend}"), f"{path}: {name}"
            if library(name) in ALL_BACKEND_LIBRARIES:
                assert backend, f"{path}: {name}"


@pytest.mark.parametrize("backend", BACKEND_LIBRARIES)
def test_backends_do_not_know_each_other(backend):
    others = ALL_BACKEND_LIBRARIES - BACKEND_LIBRARIES[backend]
    for path in files(f"backends/{backend}"):
        for name in imports(path):
            assert library(name) not in others, f"{path}: {name}"
            own = name.startswith(f"maskx_d2.backends.{backend}")
            assert own or not name.startswith("maskx_d2.backends"), f"{path}: {name}"


HIDE_DETECTRON2 = """
import importlib.machinery, sys

class Hide(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name == "detectron2" else super().find_spec(name, path, target)

sys.meta_path = [Hide if f is importlib.machinery.PathFinder else f for f in sys.meta_path]
"""


@pytest.mark.parametrize(
    "modules",
    [
        [
            "maskx_d2",
            "maskx_d2.data.shapes",
            "maskx_d2.evaluation.pictures",
            "maskx_d2.cli",
            "maskx_d2.demo",
            "maskx_d2.predict",
            "maskx_d2.detector",
            "maskx_d2.view",
            "maskx_d2.fill_masks",
            "maskx_d2.find_masks",
            "maskx_d2.on_ray",
        ],
        ["maskx_d2.method", "maskx_d2.backends.torchvision.demo"],
    ],
    ids=["without torch", "with torch"],
)
def test_without_detectron2_the_package_can_be_imported(modules):
    code = f"""{HIDE_DETECTRON2}
from importlib import import_module

for module in {modules}:
    import_module(module)
    assert "detectron2" not in sys.modules, module
    if not {{"method", "backends"}} & set(module.split(".")):
        assert "torch" not in sys.modules, module
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_without_detectron2_its_command_line_ends_with_the_install_command():
    train_net = PACKAGE.parent / "train_net.py"
    code = f"{HIDE_DETECTRON2}\nimport runpy\nrunpy.run_path({str(train_net)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "needs Detectron2, which is not installed: pip install --no-build-isolation" in line


def test_with_detectron2_the_import_registers_its_components():
    pytest.importorskip("detectron2", reason="needs Detectron2, which is not installed")
    code = """
import maskx_d2
from detectron2.config import get_cfg
from detectron2.modeling import META_ARCH_REGISTRY, ROI_HEADS_REGISTRY, ROI_MASK_HEAD_REGISTRY
assert "MaskXHead" in ROI_MASK_HEAD_REGISTRY
assert "PartiallySupervisedROIHeads" in ROI_HEADS_REGISTRY
assert "FrozenDetectorRCNN" in META_ARCH_REGISTRY
assert "CLASSES_WITH_MASKS" in get_cfg().DATASETS
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
