"""
Mask^X R-CNN ("Learning to Segment Every Thing", CVPR 2018) for Detectron2.

If Detectron2 is installed, importing this package registers with it: ``MaskXHead``, the standard, cascade
and Res5 ROI heads for data in which some instances have no mask, ``FrozenDetectorRCNN`` and the Visual
Genome datasets.
``add_maskx_config`` adds their keys to a config.
"""

from importlib.util import find_spec

from maskx_d2.runtime.interrupt import exit_on_ctrl_c

exit_on_ctrl_c()

__version__ = "0.3.0"

if find_spec("detectron2") is not None:
    from maskx_d2.backends.detectron2 import add_maskx_config, build_train_loader

    __all__ = ["add_maskx_config", "build_train_loader", "load_detector"]


def __getattr__(name: str):
    # Imported on first use, because the drawing code takes a while to import.
    if name == "load_detector":
        from maskx_d2.backends.load import load_detector

        return load_detector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
