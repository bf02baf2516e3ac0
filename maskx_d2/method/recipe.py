"""How a mask head is built, what it learns from, and how long it is trained."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Recipe:
    """
    The options of a mask head that both backends know. Both turn a recipe into options of their own, and
    :mod:`maskx_d2.recipes` trains mask heads by it.
    """

    title: str
    predictor: str = "transfer"
    """See :func:`build_mask_predictor`; so are the next four."""

    class_embedding: str = "cls"
    embedding_dropout: float = 0.0
    mlp_layers: int = 0
    mlp_reduced_channels: int = 0
    trunk: str = "convs"
    """``"convs"`` or a key of :data:`HOURGLASSES`."""

    channels: int = 256
    """Of the convolutions and of the deconvolution."""

    train_rois: str = "proposals"
    """``"proposals"``, ``"ground_truth"`` or ``"both"``."""

    box_supervision: Mapping[str, float] = field(default_factory=dict)
    """Weights of the losses of :class:`BoxSupervision`, by name; empty for none."""

    teacher: Mapping[str, float] = field(default_factory=dict)
    """Options of :class:`TeacherSupervision`; empty for none."""


@dataclass(frozen=True)
class Schedule:
    """The length of a training, and what a step sees."""

    steps: int = 500
    images: int = 8
    rois: int = 4
    """RoIs of an image."""

    learning_rate: float = 0.002
    warmup_steps: int = 30
    weight_decay: float = 0.0001

    def learning_rate_factor(self, step: int) -> float:
        """A warm-up, then a cosine to zero."""
        warmup = min(1.0, (step + 1) / self.warmup_steps)
        return warmup * 0.5 * (1 + math.cos(math.pi * step / self.steps))


def ramp(steps: int) -> dict[str, int]:
    """
    When box supervision starts in a training of some length, as arguments of :class:`BoxSupervision`: after
    two fifths, and it rises over the next fifth. Masks that are still meaningless gain nothing from filling
    their boxes.
    """
    return {"start": steps * 2 // 5, "warmup": steps // 5}
