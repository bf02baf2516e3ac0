"""
Mask^X R-CNN ("Learning to Segment Every Thing", CVPR 2018) for Detectron2.

Where Detectron2 is installed, importing this package registers ``MaskXHead``,
``PartiallySupervisedROIHeads``, ``FrozenDetectorRCNN`` and the Visual Genome datasets with it and adds
their config keys to ``detectron2.config.get_cfg()``.
"""

from importlib.util import find_spec

__version__ = "0.1.0"

if find_spec("detectron2") is not None:
    from maskx_d2.hosts.detectron2 import add_maskx_config, build_train_loader

    __all__ = ["add_maskx_config", "build_train_loader"]
