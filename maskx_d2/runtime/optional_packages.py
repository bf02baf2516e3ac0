"""What the package does not bring along, and how to get it."""

from importlib.util import find_spec

from maskx_d2.data.errors import InputError

_INSTALL_RAY = "pip install 'ray[data]>=2.50'"
_INSTALL_GRADIO = "pip install 'gradio>=6,<7'"
_INSTALL_DETECTRON2 = (
    "pip install --no-build-isolation 'detectron2 @ git+https://github.com/facebookresearch/"
    "detectron2.git@02b5c4e295e990042a714712c21dc79b731e8833'"
)


def need_ray(what: str) -> None:
    """
    Raises:
        ValueError: Ray Data, which ``what`` needs, is not installed.
    """
    if not (find_spec("ray") and find_spec("pyarrow")):
        raise InputError(f"{what} needs Ray Data, which is not installed: {_INSTALL_RAY}")


def need_gradio(what: str) -> None:
    """
    Raises:
        ValueError: Gradio, which ``what`` needs, is not installed.
    """
    if not find_spec("gradio"):
        raise InputError(f"{what} needs Gradio, which is not installed: {_INSTALL_GRADIO}")


def has_detectron2() -> bool:
    """Whether it is installed."""
    return find_spec("detectron2") is not None


def need_detectron2(what: str) -> None:
    """
    Raises:
        ValueError: Detectron2, which ``what`` needs, is not installed.
    """
    if not has_detectron2():
        raise InputError(f"{what} needs Detectron2, which is not installed: {_INSTALL_DETECTRON2}")
