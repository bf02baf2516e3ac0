#!/usr/bin/env python3
"""Plot photographs.json: mask AP on B of each recipe, as a share of the oracle's, for each dataset."""

import argparse
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure

from maskx_d2.data.files import load_json

SHOWN = {
    "class_agnostic": "class-agnostic",
    "maskx_as_in_the_paper": "Mask^X as in the paper",
    "maskx": "Mask^X: cls, dropout",
    "dropout_projection_known_background": "with projection, known background",
    "maskx_box_supervised": "with projection, pairwise",
    "class_agnostic_box_supervised": "class-agnostic, projection, pairwise",
}
"""Row of photographs.py -> label."""


def plot(datasets: dict[str, dict]) -> Figure:
    """A point for each split and seed, a bar for their mean."""
    figure = Figure(figsize=(3.4 * len(datasets) + 2.6, 2.6), layout="constrained")
    panels = figure.subplots(1, len(datasets), sharey=True, squeeze=False)[0]
    for panel, (dataset, results) in zip(panels, datasets.items(), strict=True):
        for place, name in enumerate(reversed(SHOWN)):
            runs, oracle = results.get(name, {}), results["oracle"]
            shares = [100 * runs[run]["B"] / oracle[run]["B"] for run in runs if run in oracle]
            if shares:
                panel.barh(place, fmean(shares), color="#0099cc", alpha=0.35)
                panel.plot(shares, [place] * len(shares), ".", color="#0099cc")
        panel.axvline(100, color="#555555", linewidth=0.8)
        panel.set_yticks(range(len(SHOWN)), [SHOWN[name] for name in reversed(SHOWN)], fontsize=8)
        panel.set_title(dataset, fontsize=9)
        panel.set_xlabel("mask AP on B, % of the oracle's", fontsize=8)
        panel.tick_params(axis="x", labelsize=8)
        panel.set_xlim(0, 119)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(__file__).with_name("photographs.json")
    parser.add_argument("json", nargs="?", type=Path, default=default)
    parser.add_argument("--output", type=Path, default=Path("recipes.png"), metavar="FILE")
    args = parser.parse_args()
    plot(load_json(args.json, what="results")).savefig(args.output, dpi=110)


if __name__ == "__main__":
    main()
