"""Allowed ranges of a model's numeric options. torchvision itself would fail later, or not at all."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from maskx_d2.data.errors import InputError


@dataclass(frozen=True)
class _Range:
    least: float
    most: float
    lengths: tuple[int, int] | None = None
    """Shortest and longest length of a sequence; None if the option is a number."""

    or_number: bool = False
    """Whether a sequence may also be one number."""

    def describe(self) -> str:
        """What is expected, as the end of a sentence."""
        numbers = f"from {self.least:g} to {self.most:g}"
        if self.lengths is None:
            return f"a number {numbers}"
        least, most = self.lengths
        count = str(least) if least == most else f"{least} to {most}"
        return f"{'a number or ' * self.or_number}{count} numbers {numbers}"

    def has(self, value: object) -> bool:
        if self.lengths is None or (self.or_number and not isinstance(value, list | tuple)):
            return self._has_number(value)
        least, most = self.lengths
        if not isinstance(value, list | tuple) or not least <= len(value) <= most:
            return False
        return all(self._has_number(number) for number in value)

    def _has_number(self, value: object) -> bool:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and math.isfinite(value) and self.least <= value <= self.most


_COUNT, _WIDTH, _SHARE = _Range(1, 100_000), _Range(1, 65_536), _Range(0, 1)
_RANGES = {
    "min_size": _Range(1, 6000, (1, 100), or_number=True),
    "max_size": _Range(1, 6000),
    "image_mean": _Range(-1000, 1000, (3, 3)),
    "image_std": _Range(1e-6, 1000, (3, 3)),
    "bbox_reg_weights": _Range(1e-6, 1e6, (4, 4)),
    "anchor_aspect_ratios": _Range(1e-3, 1e3, (1, 100)),
    "returned_layers": _Range(1, 4, (1, 4)),
    "trainable_backbone_layers": _Range(0, 5),
    "mask_head_channels": _Range(1, 65_536, (1, 64)),
    "mlp_reduced_channels": _Range(0, 65_536),
    "box_sampling_ratio": _Range(0, 64),
    **{f"rpn_{when}_nms_top_n_{mode}": _COUNT for when in ("pre", "post") for mode in ("train", "test")},
    **{f"{part}_batch_size_per_image": _COUNT for part in ("rpn", "box")},
    "box_detections_per_img": _COUNT,
    **{f"{part}_nms_thresh": _SHARE for part in ("rpn", "box")},
    **{f"{part}_score_thresh": _Range(0, 10) for part in ("rpn", "box")},  # above 1 nothing is found
    **{f"{part}_{what}_iou_thresh": _SHARE for part in ("rpn", "box") for what in ("fg", "bg")},
    **{f"{part}_positive_fraction": _SHARE for part in ("rpn", "box")},
    "embedding_dropout": _SHARE,
    **dict.fromkeys(("fpn_channels", "box_head_dim", "hourglass_channels"), _WIDTH),
    **dict.fromkeys(("transfer_hidden_dim", "mlp_hidden_dim"), _WIDTH),
}


def check_ranges(options: Mapping[str, object]) -> None:
    """
    Args:
        options: options of :func:`maskx_rcnn_resnet_fpn`. None stands for a default.

    Raises:
        ValueError: an option is out of range or of the wrong type; the message names it.
    """
    for name, allowed in _RANGES.items():
        value = options.get(name)
        if value is not None and not allowed.has(value):
            raise InputError(f"{name} is {repr(value)[:100]}, expected {allowed.describe()}")
    sizes = _Range(1, 100_000, (1, 100))
    for of_level in options.get("anchor_sizes") or ():
        if not sizes.has(of_level):
            raise InputError(f"anchor_sizes has {repr(of_level)[:100]}, expected {sizes.describe()}")
