#!/usr/bin/env python3
"""
Makes the pictures of these pages.

    python docs/figures.py                  # the drawings of "How it works"
    python docs/figures.py output/demo      # and demo.png, out of what a demo has left
"""

import sys
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from PIL import Image

DOCS = Path(__file__).resolve().parent
FROZEN, LEARNED, DATA = "#dfe7f2", "#ffd9a0", "#f4f4f4"
DEMO_WIDTH, DEMO_ROWS = 1100, 3  # pixels, images


def box(axes: Axes, x: float, y: float, text: str, colour: str, width: float = 2.2) -> None:
    """Around its middle."""
    shape = FancyBboxPatch(
        (x - width / 2, y - 0.42), width, 0.84, "round,pad=0.02,rounding_size=0.1", fc=colour, ec="#444"
    )
    axes.add_patch(shape)
    axes.text(x, y, text, ha="center", va="center", fontsize=9)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], text: str = "") -> None:
    style = {"arrowstyle": "-|>", "color": "#444", "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", end, start, arrowprops=style)
    x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
    if start[1] == end[1]:
        axes.text(x, y + 0.46, text, fontsize=8, color="#333", ha="center", va="bottom")
    else:
        axes.text(x + 0.08, y + 0.06, text, fontsize=8, color="#333", ha="left", va="bottom")


def drawing(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width * 0.72, height * 0.72), layout="constrained")
    axes = figure.subplots()
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.set_aspect("equal")
    axes.set_axis_off()
    return figure, axes


def head() -> Figure:
    """The mask head of Mask^X R-CNN."""
    figure, axes = drawing(14.4, 6.0)
    box(axes, 1.4, 4.9, "RoI features\nof a detection", DATA)
    box(axes, 4.6, 4.9, "box head", FROZEN)
    box(axes, 7.8, 4.9, "box predictor:\ncls and box weights", FROZEN, 2.8)
    arrow(axes, (2.5, 4.9), (3.5, 4.9))
    arrow(axes, (5.7, 4.9), (6.4, 4.9))
    arrow(axes, (9.2, 4.9), (10.6, 4.9))
    axes.text(10.7, 4.9, "classes, boxes", fontsize=9, va="center")
    box(axes, 7.8, 2.95, "T, weight transfer\n2 layers, LeakyReLU", LEARNED, 2.8)
    arrow(axes, (7.8, 4.48), (7.8, 3.37), "row of the class, no gradient back")
    box(axes, 4.6, 1.5, "4 convolutions,\ndeconvolution", LEARNED)
    arrow(axes, (1.4, 4.48), (1.4, 1.5))
    arrow(axes, (1.4, 1.5), (3.5, 1.5))
    box(axes, 7.8, 1.5, "1 x 1 convolution", DATA, 2.8)
    arrow(axes, (5.7, 1.5), (6.4, 1.5), "C x M x M")
    arrow(axes, (7.8, 2.53), (7.8, 1.92), "C mask weights")
    box(axes, 7.8, 0.45, "MLP branch, class-agnostic", LEARNED, 2.8)
    arrow(axes, (5.2, 1.08), (6.4, 0.45))
    box(axes, 11.9, 1.5, "mask logits\nM x M", DATA)
    arrow(axes, (9.2, 1.5), (10.8, 1.5))
    arrow(axes, (9.2, 0.45), (11.4, 1.08), "added")
    return figure


def gathered() -> Figure:
    """Mask weights gathered by class, and masks of all classes."""
    figure, axes = drawing(14.4, 4.6)
    for y, title, parts in (
        (3.3, "original", ("features\nN x C x M x M", "logits of all classes\nN x K x M x M", "one in K")),
        (1.0, "here", ("features\nN x C x M x M", "weights of its class\nN x C, gathered", "N products")),
    ):
        axes.text(0.1, y, title, fontsize=10, va="center", weight="bold")
        colours = (DATA, "#ffc9c0" if y > 2 else "#cdeccd", DATA)
        for x, text, colour, width in zip((2.8, 6.6, 10.2), parts, colours, (2.4, 3.2, 2.0), strict=True):
            box(axes, x, y, text, colour, width)
        arrow(axes, (4.0, y), (5.0, y))
        arrow(axes, (8.2, y), (9.2, y))
        arrow(axes, (11.2, y), (12.1, y))
        axes.text(12.2, y, "N x M x M", fontsize=9, va="center")
    axes.text(6.6, 2.5, "3,001 classes, 100 RoIs: 1.16 s, 1,797 MiB", fontsize=9, ha="center")
    axes.text(6.6, 0.2, "3.4 ms, 0.4 MiB", fontsize=9, ha="center")
    return figure


def demo(folder: Path) -> Image.Image:
    """Images of a demo with ground truth and what each mask head finds."""
    paths = sorted((folder / "pictures").glob("*.png"))[:DEMO_ROWS]
    rows = [Image.open(path).convert("RGB") for path in paths]
    whole = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        whole.paste(row, (0, top))
        top += row.height
    size = DEMO_WIDTH, round(whole.height * DEMO_WIDTH / whole.width)
    return whole.resize(size, Image.Resampling.LANCZOS).quantize(128)


def main() -> None:
    with matplotlib.rc_context({"svg.hashsalt": "maskx_d2", "svg.fonttype": "none"}):
        for name, figure in (("head", head()), ("gathered", gathered())):
            figure.savefig(DOCS / f"{name}.svg", metadata={"Date": None})
    if len(sys.argv) > 1:
        demo(Path(sys.argv[1])).save(DOCS / "demo.png", optimize=True)


if __name__ == "__main__":
    main()
