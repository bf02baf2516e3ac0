"""Backbones with an FPN: torchvision's ResNets, and the models of timm."""

import contextlib
import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import WeightsEnum
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from maskx_d2.data.errors import InputError, MissingFileError
from maskx_d2.runtime.checkpoints import check_finite, check_state, read_checkpoint
from maskx_d2.runtime.optional_packages import need

DEPTHS = (18, 34, 50, 101, 152)
NORMS = {"BN": nn.BatchNorm2d, "FrozenBN": FrozenBatchNorm2d, "GN": partial(nn.GroupNorm, 32)}
_STRIDES = (4, 8, 16, 32)  # of layers 1 to 4, as in a ResNet


@dataclass(frozen=True)
class BackboneOptions:
    """Options of :func:`maskx_rcnn_resnet_fpn` that describe the backbone, with the same names there."""

    depth: int = 50
    backbone: str | None = None
    weights_backbone: WeightsEnum | str | None = None
    backbone_weights: str | None = None
    trainable_backbone_layers: int | None = None
    norm: str | None = None
    fpn_channels: int = 256
    returned_layers: Sequence[int] = (1, 2, 3, 4)

    @classmethod
    def of_model(cls, options: Mapping) -> "BackboneOptions":
        """Those among the options of a model."""
        own = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in options.items() if name in own})

    @property
    def is_pretrained(self) -> bool:
        return self.weights_backbone is not None or self.backbone_weights is not None

    @property
    def norm_name(self) -> str:
        """The normalisation, a key of :data:`NORMS`."""
        return self.norm or ("FrozenBN" if self.is_pretrained else "BN")

    @property
    def trainable_layers(self) -> int:
        if self.trainable_backbone_layers is not None:
            return self.trainable_backbone_layers
        return 3 if self.is_pretrained else 5

    def without_weights(self) -> dict[str, object]:
        """What changes in the options where a checkpoint holds the weights: it must not need the file."""
        return {
            "weights_backbone": None,
            "backbone_weights": None,
            "norm": self.norm_name,
            "trainable_backbone_layers": self.trainable_layers,
        }

    def __post_init__(self) -> None:
        if self.weights_backbone is not None and self.backbone_weights is not None:
            raise InputError(
                f"weights_backbone is {self.weights_backbone!r} and backbone_weights "
                f"{self.backbone_weights!r}, expected only one of them"
            )


def build_backbone(options: BackboneOptions) -> nn.Module:
    """A backbone with an FPN, as torchvision's detection models take it."""
    one_of("norm", options.norm_name, tuple(NORMS))
    return _resnet(options) if options.backbone is None else TimmBackbone(options)


class TimmBackbone(nn.Module):
    """Features of a model of `timm <https://huggingface.co/docs/timm>`_, followed by torchvision's FPN."""

    def __init__(self, options: BackboneOptions):
        super().__init__()
        name = options.backbone
        one_of(f"norm of backbone {name}", options.norm_name, ("BN", "FrozenBN"))
        self.body, self.image_mean, self.image_std = _timm_body(options)
        _freeze_first_layers(self.body, options)
        self.fpn = FeaturePyramidNetwork(
            self.body.feature_info.channels(), options.fpn_channels, extra_blocks=LastLevelMaxPool()
        )
        self.out_channels = options.fpn_channels

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """(N, 3, H, W) normalised images -> (N, C, H', W') features by level, as torchvision names them."""
        return self.fpn(OrderedDict((str(i), level) for i, level in enumerate(self.body(images))))


def _resnet(options: BackboneOptions) -> nn.Module:
    one_of("depth", options.depth, DEPTHS)
    name = f"resnet{options.depth}"
    weights = options.weights_backbone
    if isinstance(weights, str):
        known = torchvision.models.get_model_weights(name)
        one_of("weights_backbone", weights, tuple(known.__members__))
        weights = known[weights]
    backbone = resnet_fpn_backbone(
        backbone_name=name,
        weights=weights,
        norm_layer=NORMS[options.norm_name],
        trainable_layers=options.trainable_layers,
        returned_layers=list(options.returned_layers),
    )
    if options.backbone_weights is not None:
        state, path = read_backbone_weights(options.backbone_weights), options.backbone_weights
        expected = backbone.body.state_dict()
        check_state(f"backbone_weights {path}", state, expected)
        check_finite(path, {key: state[key] for key in expected})
        backbone.body.load_state_dict({key: state[key] for key in expected})
    if options.fpn_channels != backbone.out_channels:
        # Torchvision's builder has no option for it.
        in_channels = [block[0].in_channels for block in backbone.fpn.inner_blocks]
        backbone.fpn = FeaturePyramidNetwork(
            in_channels, options.fpn_channels, extra_blocks=LastLevelMaxPool()
        )
        backbone.out_channels = options.fpn_channels
    return backbone


def _timm_body(options: BackboneOptions) -> tuple[nn.Module, list[float], list[float]]:
    """The feature extractor, and the mean and standard deviation that its images are normalised with."""
    need(f"backbone {options.backbone}", "timm")
    import timm
    from timm.layers import freeze_batch_norm_2d

    name = options.backbone
    if not timm.is_model(name.split(".")[0]):
        near = ", ".join(timm.list_models(f"*{name[:8]}*")[:3]) or "one of timm.list_models()"
        raise InputError(f"backbone is {name!r}, which timm does not have, expected a model such as {near}")
    try:
        with torch.device("meta"):
            whole = timm.create_model(name)
            layers = timm.create_model(name, features_only=True).feature_info.reduction()
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:  # as timm raises for each model
        reason = str(error).split("\n", 1)[0][:200]
        raise InputError(
            f"backbone is {name!r}, expected a model with features: timm says {reason}"
        ) from error
    strides = [_STRIDES[layer - 1] for layer in options.returned_layers]
    if not set(strides) <= set(layers):
        raise InputError(
            f"backbone is {name!r} with features at strides {', '.join(map(str, layers))}, expected "
            f"{', '.join(map(str, strides))} among them"
        )
    if whole.pretrained_cfg.get("fixed_input_size"):
        side = whole.pretrained_cfg["input_size"][-1]
        raise InputError(
            f"backbone is {name!r}, which takes images of {side} x {side} only, expected one for any size"
        )
    weights = {}
    if options.backbone_weights is not None:
        _check_timm_weights(options.backbone_weights, whole)
        weights = {"pretrained": True, "pretrained_cfg_overlay": {"file": options.backbone_weights}}
    elif options.weights_backbone is not None:
        one_of("weights_backbone", options.weights_backbone, ("DEFAULT",))
        weights = {"pretrained": True}
    try:
        with _without_warnings("timm.models"):  # of the classifier's weights, which are left out
            body = timm.create_model(
                name, features_only=True, out_indices=[layers.index(s) for s in strides], **weights
            )
    except Exception as error:  # anything that the hub raises without a network
        if options.weights_backbone is None:
            raise
        reason = str(error).split("\n", 1)[0][:200]
        raise InputError(
            f"weights_backbone is 'DEFAULT', but the weights of {name} cannot be downloaded ({reason}): "
            "give a file with backbone_weights"
        ) from error
    if options.norm_name == "FrozenBN":
        body = freeze_batch_norm_2d(body)
    return body, list(whole.pretrained_cfg["mean"]), list(whole.pretrained_cfg["std"])


@contextlib.contextmanager
def _without_warnings(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _check_timm_weights(path: str, model: nn.Module) -> None:
    """Timm itself loads what fits and leaves out the rest."""
    state = read_backbone_weights(path)
    head = tuple(f"{name}." for name in _as_tuple(model.pretrained_cfg.get("classifier", ())))
    expected = {key: value for key, value in model.state_dict().items() if not key.startswith(head)}
    check_state(f"backbone_weights {path}", state, expected)
    check_finite(path, {key: state[key] for key in expected})


def _as_tuple(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def read_backbone_weights(path: str) -> dict:
    """
    Read the state dict of a backbone, as torch.save or safetensors have written it. It is read as data.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or holds something else.
    """
    if Path(path).suffix == ".safetensors":
        if not Path(path).is_file():
            raise MissingFileError(f"backbone_weights {path} is not a file")
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise InputError(f"backbone_weights {path} is not a safetensors file: {error}") from error
    content = read_checkpoint(path)
    return next(
        (content[key] for key in ("state_dict", "model") if isinstance(content.get(key), dict)), content
    )


def _freeze_first_layers(body: nn.Module, options: BackboneOptions) -> None:
    """Freeze all but the last ``trainable_layers`` of five: the stem and four layers, as in a ResNet."""
    if options.trainable_layers == 0:
        body.requires_grad_(False)
    stride = {4: 2, 3: 4, 2: 8, 1: 16}.get(options.trainable_layers)
    if stride is None:
        return
    info = [layer for layer in body.feature_info.info if layer["reduction"] <= stride]
    if not info:  # the model has no layer of its own at stride 2
        return
    last = info[-1]["module"]
    names = {last, last.replace(".", "_")}  # timm flattens the names of some models
    was_inside = False
    for name, module in body.named_modules():
        is_inside = any(name == of_layer or name.startswith(f"{of_layer}.") for of_layer in names)
        if was_inside and not is_inside:
            return
        was_inside = is_inside
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)
    if not was_inside:
        raise InputError(
            f"trainable_backbone_layers is {options.trainable_layers}, expected 0 or 5 for backbone "
            f"{options.backbone}, whose layers are not separate modules"
        )


def one_of(name: str, value, allowed: tuple) -> None:
    """Raise an error unless the value is allowed."""
    if value not in allowed:
        raise InputError(f"{name} is {value!r}, expected one of {', '.join(map(repr, allowed))}")
