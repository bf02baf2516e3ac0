"""
Mask^X R-CNN ("Learning to Segment Every Thing", CVPR 2018) for Detectron2.

If Detectron2 is installed, importing this package registers with it: ``MaskXHead``, the standard, cascade
and Res5 ROI heads for data in which some instances have no mask, ``FrozenDetectorRCNN`` and the Visual
Genome datasets.
``add_maskx_config`` adds their keys to a config.
"""

from maskx_d2.runtime.interrupt import exit_on_ctrl_c
from maskx_d2.runtime.optional_packages import detectron2_problem

exit_on_ctrl_c()

__version__ = "0.3.0"

if detectron2_problem() is None:
    from maskx_d2.backends.detectron2 import add_maskx_config, build_train_loader

    __all__ = ["add_maskx_config", "build_train_loader", "load_detector"]


def __getattr__(name: str):
    # Imported on first use, because the drawing code takes a while to import.
    if name == "load_detector":
        from maskx_d2.backends.load import load_detector

        return load_detector
    if name in ("add_maskx_config", "build_train_loader"):
        raise AttributeError(f"maskx_d2.{name} needs Detectron2, {detectron2_problem()}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
