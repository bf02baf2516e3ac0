"""The rules of which part may import which."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .hidden import HIDE_DETECTRON2

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
            assert own or library(name) in {
                *("torch", "collections", "dataclasses", "itertools", "math", "typing")
            }, f"{path}: {name}"


ROOMS = (
    ("commands",),
    ("app", "demo", "recipes", "teachers"),
    ("backends",),
    ("inference",),
    ("evaluation", "runtime"),
    ("data", "method"),
)
"""Each row may import those below it, and a room itself."""

TOP = {"__init__.py", "__main__.py"}


def room_of(path):
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else None


def test_every_file_is_in_a_room():
    rooms = {room for row in ROOMS for room in row}
    for path in PACKAGE.rglob("*.py"):
        assert room_of(path) in rooms or path.relative_to(PACKAGE).as_posix() in TOP, path
    assert {
        path.name for path in PACKAGE.iterdir() if path.is_dir() and (path / "__init__.py").exists()
    } == rooms


@pytest.mark.parametrize("number", range(len(ROOMS)))
def test_imports_point_one_way(number):
    allowed = {room for row in ROOMS[number + 1 :] for room in row}
    for room in ROOMS[number]:
        for path in files(room):
            for name in imports(path):
                if name.startswith("maskx_d2."):
                    assert name.split(".")[1] in allowed | {room}, f"{path}: {name}"


@pytest.mark.parametrize("room", ["data", "evaluation"])
def test_data_and_evaluation_import_neither_torch_nor_a_backend(room):
    for path in files(room):
        for name in imports(path):
            assert library(name) not in {"torch", *ALL_BACKEND_LIBRARIES}, f"{path}: {name}"


def test_a_backend_is_imported_at_import_time_by_itself_alone():
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).parts
        backend = parts[1] if parts[0] == "backends" and len(parts) > 2 else None
        for name in imports(path, top_level_only=True):
            if name.startswith("maskx_d2.backends") and name != "maskx_d2.backends.load":
                assert backend and name.startswith(f"maskx_d2.backends.{backend}"), f"{path}: {name}"
            # Operators on tensors, which come with any installation.
            if library(name) in ALL_BACKEND_LIBRARIES and (parts[0], name) != (
                "recipes",
                "torchvision.ops",
            ):
                assert backend, f"{path}: {name}"


def test_only_load_picks_a_backend():
    """Commands and the demo name the one that they are for."""
    for room in ("app", "recipes", "inference", "evaluation", "runtime", "data", "method"):
        for path in files(room):
            for name in imports(path):
                assert not name.startswith("maskx_d2.backends"), f"{path}: {name}"


@pytest.mark.parametrize("backend", BACKEND_LIBRARIES)
def test_backends_do_not_know_each_other(backend):
    others = ALL_BACKEND_LIBRARIES - BACKEND_LIBRARIES[backend]
    for path in files(f"backends/{backend}"):
        for name in imports(path):
            assert library(name) not in others, f"{path}: {name}"
            own = name.startswith(f"maskx_d2.backends.{backend}")
            assert own or not name.startswith("maskx_d2.backends"), f"{path}: {name}"


@pytest.mark.parametrize(
    "modules",
    [
        [
            "maskx_d2",
            "maskx_d2.demo.shapes",
            "maskx_d2.evaluation.pictures",
            "maskx_d2.commands.main",
            "maskx_d2.demo.run",
            "maskx_d2.demo.on_detectron2",
            "maskx_d2.demo.on_torchvision",
            "maskx_d2.inference.predict",
            "maskx_d2.inference.detector",
            "maskx_d2.app.results",
            "maskx_d2.inference.fill_masks",
            "maskx_d2.inference.masks_in_boxes",
            "maskx_d2.inference.ray_data",
            "maskx_d2.inference.mask_scores",
        ],
        [
            "maskx_d2.method",
            "maskx_d2.recipes.study",
            "maskx_d2.backends.load",
            "maskx_d2.backends.torchvision.command_line",
        ],
    ],
    ids=["without torch", "with torch"],
)
def test_without_detectron2_the_package_can_be_imported(modules):
    code = f"""{HIDE_DETECTRON2}
from importlib import import_module

for module in {modules}:
    import_module(module)
    assert "detectron2" not in sys.modules, module
    if not {{"method", "recipes", "backends"}} & set(module.split(".")):
        assert "torch" not in sys.modules, module
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_inference_imports_neither_lightning_nor_what_draws_the_reports():
    code = """
import sys
import maskx_d2.backends.torchvision.frozen_detector
import maskx_d2.backends.torchvision.predict
assert not {"lightning", "torchmetrics", "jsonargparse", "matplotlib", "scipy"} & set(sys.modules)
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
cfg = get_cfg()
assert "CLASSES_WITH_MASKS" not in cfg.DATASETS
maskx_d2.add_maskx_config(cfg)
assert cfg.DATASETS.CLASSES_WITH_MASKS == "all"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---- What is in Detectron2's place ----


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, r"but finds only the folder .*detectron2: pip install"),
        ("", r"which is in .*detectron2 but cannot be imported: ModuleNotFoundError: No module named"),
        ("raise OSError('undefined symbol: _Z')", r"cannot be imported: OSError: undefined symbol: _Z"),
    ],
)
def test_a_detectron2_that_cannot_be_used_is_not_in_the_way_of_torchvision(tmp_path, content, reason):
    folder = tmp_path / "detectron2"
    folder.mkdir()
    # Once, as it takes seconds.
    uses_torchvision = "from maskx_d2.backends.torchvision import maskx_rcnn_resnet_fpn"
    if content is not None:
        (folder / "__init__.py").write_text(content)
        uses_torchvision = ""
    code = (
        "import sys; sys.path.insert(0, '.')\n"
        "import importlib.machinery as machinery\n"
        "find = machinery.PathFinder.find_spec\n"
        "def own(name, path=None, target=None):\n"
        "    return find(name, ['.'] if name == 'detectron2' else path, target)\n"
        "machinery.PathFinder.find_spec = own\n"
        f"{uses_torchvision}\n"
        "from maskx_d2.data.errors import InputError\n"
        "from maskx_d2.runtime.optional_packages import has_detectron2, need_detectron2\n"
        "assert not has_detectron2()\n"
        "try:\n    need_detectron2('this')\nexcept InputError as error:\n    print(error)\n"
        "import maskx_d2\n"
        "try:\n    maskx_d2.add_maskx_config\nexcept AttributeError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    first, second = done.stdout.splitlines()
    assert re.match(rf"this needs Detectron2, .*{reason}", first), first
    assert re.match(rf"maskx_d2.add_maskx_config needs Detectron2, .*{reason}", second), second
