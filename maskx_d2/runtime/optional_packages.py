"""Packages that only some commands need, and how to install them."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from maskx_d2.data.errors import InputError

REQUIREMENTS = {
    "contourpy": "contourpy",
    "cv2": "opencv-python",
    "defusedxml": "defusedxml",
    "gradio": "gradio>=6,<7",
    "jinja2": "jinja2",
    "jsonargparse": "jsonargparse[signatures]>=4.53",
    "lightning": "lightning>=2.6",
    "matplotlib": "matplotlib",
    "ray": "ray[data]>=2.50",
    "scipy": "scipy>=1.12",
    "supervision": "supervision>=0.31",
    "tensorboard": "tensorboard",
    "timm": "timm>=1.0.9",
    "transformers": "transformers>=5",
}
"""Module -> what pip installs for it, as in the extras of pyproject.toml."""

DRAWING = ("supervision", "cv2")
REPORTS = ("jinja2", "matplotlib", *DRAWING)
TORCHVISION_TRAINING = ("lightning", "jsonargparse", "tensorboard")

_INSTALL_DETECTRON2 = (
    "pip install --no-build-isolation 'detectron2 @ git+https://github.com/facebookresearch/"
    "detectron2.git@02b5c4e295e990042a714712c21dc79b731e8833'"
)


def need(what: str, *modules: str) -> None:
    """
    Args:
        what: what needs the packages, such as ``"maskx compare"``.
        modules: keys of :data:`REQUIREMENTS`.

    Raises:
        InputError: one of the packages is not installed.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        names = " and ".join(missing)
        packages = " ".join(f"'{REQUIREMENTS[module]}'" for module in missing)
        verb = "is" if len(missing) == 1 else "are"
        raise InputError(f"{what} needs {names}, which {verb} not installed: pip install {packages}")


def has_detectron2() -> bool:
    """Whether Detectron2 is installed and can be imported."""
    return detectron2_problem() is None


def detectron2_problem() -> str | None:
    """Why Detectron2 cannot be used, as the end of a sentence that names it; None if it can."""
    spec = find_spec("detectron2")
    if spec is None:
        return f"which is not installed: {_INSTALL_DETECTRON2}"
    if spec.origin is None:  # a folder of that name, which Python takes for a package without code
        folder = next(iter(spec.submodule_search_locations))
        return f"but finds only the folder {folder}: {_INSTALL_DETECTRON2}"
    try:
        import_module("detectron2.modeling")
    except Exception as error:  # a build for another version of torch can raise anything
        reason = f"{type(error).__name__}: {error}".split("\n", 1)[0]
        return f"which is in {Path(spec.origin).parent} but cannot be imported: {reason}"
    return None


def need_detectron2(what: str) -> None:
    """
    Raises:
        InputError: Detectron2, which ``what`` needs, is not installed or cannot be imported.
    """
    problem = detectron2_problem()
    if problem is not None:
        raise InputError(f"{what} needs Detectron2, {problem}")
