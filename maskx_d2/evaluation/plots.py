"""Plots of a comparison of runs, as SVG."""

import io
import math
from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from maskx_d2.data.printable import in_plot
from maskx_d2.evaluation.comparison import Comparison
from maskx_d2.evaluation.fonts import font_for
from maskx_d2.evaluation.pictures import BOXES_ONLY_COLOUR, WITH_MASKS_COLOUR

_MOST_CLASSES = 100
_LOSSES = ("total_loss", "loss_mask", "loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc")
_COLOURS = tuple(
    tuple(value / 255 for value in colour) for colour in (WITH_MASKS_COLOUR, BOXES_ONLY_COLOUR)
)


def class_difference_plot(comparison: Comparison, title: str, task: str) -> str | None:
    """
    Bars of the AP differences between a run and the baseline for each class, sorted, and coloured by A and
    B. With more than 100 classes, the 50 that gain most and the 50 that lose most.

    Returns:
        SVG, or None if no class differs.
    """
    differences = comparison.class_differences(title, task)
    if not any(difference for _, difference in differences):
        return None
    if len(differences) > _MOST_CLASSES:
        differences = differences[: _MOST_CLASSES // 2] + differences[-(_MOST_CLASSES // 2) :]
    evaluation = comparison.runs[title].evaluation
    in_a = set(evaluation.with_masks)
    figure = Figure(figsize=(max(5, 1.5 + 0.17 * len(differences)), 3.6), layout="constrained")
    axes = figure.subplots()
    places = range(len(differences))
    axes.bar(
        places,
        [difference for _, difference in differences],
        color=[_COLOURS[index not in in_a] for index, _ in differences],
    )
    axes.axhline(0, color="black", linewidth=0.8)
    names = [in_plot(evaluation.class_names[index]) for index, _ in differences]
    axes.set_xticks(places, names, rotation=90, fontsize=8, fontfamily=font_families(names))
    axes.margins(x=0.01)
    axes.set_ylabel("AP difference")
    axes.grid(axis="y", linewidth=0.4)
    axes.set_axisbelow(True)
    return svg(figure)


def training_curves_plot(comparison: Comparison) -> str | None:
    """A panel for each loss, a line for each run; None if no run has logged one."""
    metrics = {title: run.metrics() for title, run in comparison.runs.items()}
    losses = [name for name in _LOSSES if any(name in line for lines in metrics.values() for line in lines)]
    if not losses:
        return None
    columns = min(3, len(losses))
    rows = math.ceil(len(losses) / columns)
    figure = Figure(figsize=(4.2 * columns, 2.7 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, name in zip(panels, losses, strict=False):
        for number, lines in enumerate(metrics.values()):
            points = [(line["iteration"], line[name]) for line in lines if name in line]
            panel.plot(*_columns(points), color=f"C{number}", linewidth=1.2)
        panel.set_title(name, fontsize=10)
        panel.set_xlabel("iteration", fontsize=8)
        panel.tick_params(labelsize=8)
        panel.grid(linewidth=0.4)
        highest = max(line[name] for lines in metrics.values() for line in lines if name in line)
        panel.set_ylim(0, 1.08 * highest or 1)
    for panel in panels[len(losses) :]:
        panel.set_axis_off()
    handles = [matplotlib.lines.Line2D([], [], color=f"C{i}") for i in range(len(metrics))]
    figure.legend(
        handles,
        [in_plot(title) for title in metrics],
        loc="outside upper center",
        ncols=3,
        fontsize=9,
        frameon=False,
    )
    return svg(figure)


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def svg(figure: Figure) -> str:
    """The figure as an SVG element for a page. The result is reproducible."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "maskx_d2", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def font_families(texts: Sequence[str]) -> list[str]:
    """Matplotlib's own font, and those that have the letters that it lacks."""
    paths = {font_for(text).path for text in texts} - {None}
    return ["DejaVu Sans", *sorted(FontProperties(fname=path).get_name() for path in paths)]
