"""Packages that only some commands need, and how to install them."""

from importlib.util import find_spec

from maskx_d2.data.errors import InputError

REQUIREMENTS = {
    "contourpy": "contourpy",
    "cv2": "opencv-python",
    "gradio": "gradio>=6,<7",
    "jinja2": "jinja2",
    "jsonargparse": "jsonargparse[signatures]>=4.53",
    "lightning": "lightning>=2.6",
    "matplotlib": "matplotlib",
    "ray": "ray[data]>=2.50",
    "supervision": "supervision>=0.31",
    "tensorboard": "tensorboard",
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
    """Whether Detectron2 is installed."""
    return find_spec("detectron2") is not None


def need_detectron2(what: str) -> None:
    """
    Raises:
        InputError: Detectron2, which ``what`` needs, is not installed.
    """
    if not has_detectron2():
        raise InputError(f"{what} needs Detectron2, which is not installed: {_INSTALL_DETECTRON2}")
