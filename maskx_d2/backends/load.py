"""``load_detector``: loads a trained model of either backend. The only place that chooses a backend."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from maskx_d2.data.errors import InputError, MissingFileError
from maskx_d2.inference.detector import Detector
from maskx_d2.inference.frozen_detector import FrozenDetector
from maskx_d2.runtime.optional_packages import need_detectron2

if TYPE_CHECKING:
    from detectron2.config import CfgNode


def load_detector(
    weights: str | Path, config_file: str | Path | None = None, *, overrides: Sequence = ()
) -> Detector:
    """
    Load a trained model of either backend.

    Args:
        weights: a checkpoint.
        config_file: config of a Detectron2 model: YAML, or the Python file of a LazyConfig, which is
            executed. A ``.ckpt`` of the torchvision backend contains its config.
        overrides: config keys to override, ``KEY, VALUE, KEY, VALUE, ...``.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file is invalid, or Detectron2 is needed but not installed.
    """
    weights = _existing(weights)
    if config_file is not None:
        need_detectron2("a model with a config file")
        from maskx_d2.backends.detectron2.predict import Detectron2Detector

        if str(config_file).endswith(".py"):
            from maskx_d2.backends.detectron2.lazy_config import load_lazy_config

            return Detectron2Detector.from_lazy_config(load_lazy_config(config_file, overrides), weights)
        return Detectron2Detector.from_config(_yaml_config(config_file, weights, overrides))
    _check_is_of_torchvision(weights, overrides)
    from maskx_d2.backends.torchvision.predict import TorchvisionDetector

    return TorchvisionDetector(Path(weights))


def load_frozen_detector(
    weights: str | Path, config_file: str | Path | None = None, *, overrides: Sequence = ()
) -> FrozenDetector:
    """
    Load a trained detector of either backend to train mask heads on it. Its own mask head, if it has one,
    is left out.

    Args:
        weights: a checkpoint, or the COCO weights of torchvision's ``fasterrcnn_resnet50_fpn``.
        config_file: YAML config of a Detectron2 model.
        overrides: see :func:`load_detector`.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file is invalid, or Detectron2 is needed but not installed.
    """
    weights = _existing(weights)
    if config_file is not None:
        need_detectron2("a model with a config file")
        if str(config_file).endswith(".py"):
            raise InputError(f"--config-file {config_file} is a LazyConfig, expected a YAML config")
        from maskx_d2.backends.detectron2.frozen_model import Detectron2FrozenDetector

        return Detectron2FrozenDetector(_yaml_config(config_file, weights, overrides))
    _check_is_of_torchvision(weights, overrides, endings=(".ckpt", ".pth"))
    from maskx_d2.backends.torchvision.frozen_detector import TorchvisionFrozenDetector

    return TorchvisionFrozenDetector(Path(weights))


def _yaml_config(config_file: str | Path, weights: str, overrides: Sequence) -> "CfgNode":
    from maskx_d2.backends.detectron2.command_line import read_config

    return read_config(str(config_file), [*overrides, "MODEL.WEIGHTS", weights], with_datasets=False)


def _existing(weights: str | Path) -> str:
    weights = str(weights)
    if "://" not in weights and not Path(weights).is_file():
        raise MissingFileError(f"--weights {weights} is not a file")
    return weights


def _check_is_of_torchvision(
    weights: str, overrides: Sequence, *, endings: tuple[str, ...] = (".ckpt",)
) -> None:
    if not weights.endswith(endings):
        raise InputError(
            f"--weights {weights} is not a .ckpt of the torchvision backend, expected --config-file too"
        )
    if overrides:
        raise InputError("--opts are config keys, expected --config-file too")
