"""How well masks agree with those that exist, and which of two models is better for each class."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np
from tabulate import tabulate

from maskx_d2.data.printable import in_plot, printable
from maskx_d2.inference.mask_scores import ScoreCalibration

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MIN_MASKS = 10
"""Fewer masks do not tell which model is better for a class."""

SIDES = {"A": "A: trained with masks", "B": "B: trained with boxes only", "-": "not known to the model"}


@dataclass(frozen=True)
class MaskedObject:
    """An object with the masks that each model predicts for it."""

    class_name: str
    area: float
    """Of its box, in pixels."""

    scores: Mapping[str, float]
    """Model -> mask score."""

    ious: Mapping[str, float] | None
    """Model -> IoU with the existing mask, NaN if it does not know the class; None if there is no mask."""


@dataclass(frozen=True)
class Group:
    """Mean IoU in a group of objects that have masks."""

    kind: str
    """``"side"``, ``"size"`` or ``"class"``."""

    name: str
    num_objects: int
    mean_iou: dict[str, float]
    """By model."""


@dataclass
class MaskComparison:
    """The masks that one or two models predict, compared with the masks that exist."""

    models: Sequence[str]
    """Their names, as in the objects."""

    sides: Mapping[str, str]
    """Class -> key of :data:`SIDES`, for the first model; empty if it knows no classes."""

    objects: list[MaskedObject] = field(default_factory=list)

    @property
    def measured(self) -> list[MaskedObject]:
        """The objects that have a mask."""
        return [known for known in self.objects if known.ious is not None]

    def groups(self) -> list[Group]:
        """All objects, the sides of the split, three sizes, and the classes."""
        measured = self.measured
        groups = [("side", "all classes", measured)]
        if self.sides:
            groups = [
                ("side", title, [known for known in measured if self.sides[known.class_name] == side])
                for side, title in SIDES.items()
            ]
        if len(measured) >= 3 * MIN_MASKS:
            by_area = sorted(measured, key=lambda known: known.area)
            thirds = np.array_split(np.arange(len(by_area)), 3)
            for third, name in zip(thirds, ("smallest", "middle", "largest"), strict=True):
                of_third = [by_area[i] for i in third]
                side = round(of_third[-1].area ** 0.5)
                groups.append(("size", f"{name} third, up to {side} x {side} pixels", of_third))
        for name in sorted({known.class_name for known in measured}):
            groups.append(("class", name, [known for known in measured if known.class_name == name]))
        return [
            Group(kind, name, len(of_group), {m: _mean([o.ious[m] for o in of_group]) for m in self.models})
            for kind, name, of_group in groups
            if of_group
        ]

    def table(self) -> str:
        """A line for each group, in Markdown."""
        rows = [
            [
                printable(group.name),
                self.sides.get(group.name, "") if group.kind == "class" else "",
                group.num_objects,
                *map(_cell, group.mean_iou.values()),
            ]
            for group in self.groups()
        ]
        ious = ["mean IoU"] if len(self.models) == 1 else [f"mean IoU, {model}" for model in self.models]
        return _table(rows, ["", "side", "masks", *ious])

    def as_dict(self, choices: Mapping[str, "Choice"]) -> dict:
        """
        All figures, as JSON values.

        Args:
            choices: see :func:`better_models`; empty for none.
        """
        return {
            "models": list(self.models),
            "groups": [
                {**vars(group), "mean_iou": {m: _finite(v) for m, v in group.mean_iou.items()}}
                for group in self.groups()
            ],
            "filled_by": {name: vars(choice) for name, choice in choices.items()},
        }

    def plot(self) -> "Figure":
        """Mean IoU of each class, a point for each model."""
        from matplotlib.figure import Figure

        from maskx_d2.evaluation.plots import font_families

        groups = [group for group in self.groups() if group.kind == "class"]
        groups.sort(key=lambda group: group.mean_iou[self.models[-1]])
        figure = Figure(figsize=(6.5, 1.2 + 0.22 * len(groups)), layout="constrained")
        axes = figure.subplots()
        places = range(len(groups))
        for model in self.models:
            axes.plot([group.mean_iou[model] for group in groups], places, "o", label=in_plot(model))
        names = [in_plot(f"{group.name} ({group.num_objects})") for group in groups]
        axes.set_yticks(places, names, fontsize=8, fontfamily=font_families(names))
        axes.set_xlabel("mean IoU with the existing masks (their number)")
        axes.set_xlim(0, 1)
        axes.set_ylim(-0.6, len(groups) - 0.4)
        axes.grid(linewidth=0.4)
        axes.legend(fontsize=8)
        return figure


@dataclass(frozen=True)
class Choice:
    """Which of two models fills the masks of a class."""

    model: str
    reason: str
    """``"measured"`` on existing masks, ``"estimated"`` from mask scores, or ``"not known"``."""

    quality: dict[str, float]
    """Mean IoU of each model, measured or estimated; empty if it is not known."""


def better_models(
    comparison: MaskComparison, *, is_calibrated: bool, unknown: frozenset[str]
) -> dict[str, Choice]:
    """
    Choose one of two models for each class: the first, which was trained on some of the classes, or the
    second, which knows no class.

    A class with at least :data:`MIN_MASKS` masks is measured. For the others, the IoU of each model is
    estimated from the scores of its masks: those of the first are calibrated by cross-validation over
    classes, and those of the second here, on all objects that have masks. If there is no calibration, the
    first model is taken.

    Args:
        comparison: of the two models.
        is_calibrated: whether the scores of the first model are calibrated.
        unknown: classes that the first model does not know.
    """
    first, second = comparison.models
    measured = comparison.measured
    calibration = None
    if len(measured) >= MIN_MASKS:
        calibration = ScoreCalibration.fit(
            np.array([known.scores[second] for known in measured]),
            np.array([known.ious[second] for known in measured]),
            np.array([known.area for known in measured]),
        )
    choices = {}
    for name in sorted({known.class_name for known in comparison.objects}):
        of_class = [known for known in comparison.objects if known.class_name == name]
        with_mask = [known for known in of_class if known.ious is not None]
        if name in unknown:
            choices[name] = Choice(second, "not known", {})
        elif len(with_mask) >= MIN_MASKS:
            quality = {m: fmean(known.ious[m] for known in with_mask) for m in comparison.models}
            choices[name] = Choice(max(quality, key=quality.get), "measured", quality)
        elif is_calibrated and calibration is not None:
            scores = np.array([known.scores[second] for known in of_class])
            areas = np.array([known.area for known in of_class])
            quality = {
                first: fmean(known.scores[first] for known in of_class),
                second: float(calibration(scores, areas).mean()),
            }
            choices[name] = Choice(max(quality, key=quality.get), "estimated", quality)
        else:
            choices[name] = Choice(first, "not known", {})
    return choices


def choice_table(choices: Mapping[str, Choice], models: Sequence[str]) -> str:
    """A line for each class, in Markdown."""
    rows = [
        [
            printable(name),
            choice.model,
            choice.reason,
            *(_cell(choice.quality.get(model, math.nan)) for model in models),
        ]
        for name, choice in choices.items()
    ]
    return _table(rows, ["", "filled by", "mean IoU is", *(f"mean IoU, {model}" for model in models)])


def _mean(values: Sequence[float]) -> float:
    """Of the values that are not NaN; NaN if there are none."""
    known = [value for value in values if not math.isnan(value)]
    return fmean(known) if known else math.nan


def _finite(value: float) -> float | None:
    return None if math.isnan(value) else value


def _cell(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _table(rows: Sequence[Sequence[object]], headers: Sequence[str]) -> str:
    is_number = (h in ("masks", "mean IoU") or h.startswith("mean IoU,") for h in headers)
    align = ("right" if of_header else "left" for of_header in is_number)
    return tabulate(rows, headers, "github", colalign=tuple(align), disable_numparse=True)
