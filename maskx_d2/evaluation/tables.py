"""Tables of AP on A, on B and on all classes."""

from collections.abc import Mapping, Sequence
from math import isnan
from statistics import fmean, stdev

from tabulate import tabulate

from maskx_d2.evaluation.average_precision import METRICS

GROUP_TITLES = {"A": "A: with masks", "B": "B: boxes only", "all": "all"}
FREQUENCY_TITLES = {"frequent": "frequent third", "common": "middle third", "rare": "rare third"}
"""Groups that exist if the annotations say how many training instances each class has."""

TASK_TITLES = {"segm": "mask", "bbox": "box"}

Results = Mapping[str, Mapping[str, Mapping[str, float | None]]]
"""
``{"segm"|"bbox": {"A"|"B"|"all"|"frequent"|"common"|"rare": {metric: value}}}``; NaN or None where there is
no ground truth.
"""


def group_table(results: Results) -> str:
    """A table of one run: a row for each group of classes and task, a column for each metric."""
    rows = [
        [TASK_TITLES[task], title, *(results[task][group][m] for m in METRICS)]
        for task in TASK_TITLES
        if task in results
        for group, title in (GROUP_TITLES | FREQUENCY_TITLES).items()
        if group in results[task]
    ]
    return _table(rows, headers=["", "classes", *METRICS])


def gain_table(of_seeds: Sequence[Mapping[str, Results]], *, metric: str = "AP") -> str:
    """
    A table of the mask AP of several runs on A, B and all, and the gain of each on B over the first. With
    several seeds, mean ± standard deviation.

    Args:
        of_seeds: for each seed, the results of the same runs by title.
        metric: which of :data:`METRICS`.
    """
    groups = list(GROUP_TITLES)
    first = next(iter(of_seeds[0]))
    rows = []
    for title in of_seeds[0]:
        values = {g: [number(runs[title]["segm"][g][metric]) for runs in of_seeds] for g in groups}
        baseline = [number(runs[first]["segm"]["B"][metric]) for runs in of_seeds]
        gains = [value - before for value, before in zip(values["B"], baseline, strict=True)]
        cells = [mean_cell(of_group) for of_group in values.values()]
        rows.append([title, *cells, "-" if title == first else mean_cell(gains, sign="+")])
    headers = [f"mask {metric} on {group}" for group in groups]
    return _table(rows, headers=["", *headers, f"gain on B over {first}"], align="right")


def mean_and_deviation(of_seeds: Sequence[Mapping[str, Results]]) -> tuple[dict, dict]:
    """
    Means and standard deviations (n - 1) over several seeds of the same runs, each ``{run: Results}``; None
    where a seed has no value.
    """
    first = of_seeds[0]
    if not isinstance(first, Mapping):
        if any(isnan(number(value)) for value in of_seeds):
            return None, None
        return fmean(of_seeds), stdev(of_seeds)
    parts = {key: mean_and_deviation([of_seed[key] for of_seed in of_seeds]) for key in first}
    return {key: mean for key, (mean, _) in parts.items()}, {key: d for key, (_, d) in parts.items()}


def number(value: float | None) -> float:
    """The value, or NaN for null in JSON."""
    return float("nan") if value is None else value


def mean_cell(values: Sequence[float], *, sign: str = "") -> str:
    """``"57.2"``; for several values ``"57.2 ± 1.3"``; a dash if one is NaN. ``sign`` may be ``"+"``."""
    if any(map(isnan, values)):
        return "-"
    mean = f"{fmean(values):{sign}.1f}"
    return f"{mean} ± {stdev(values):.1f}" if len(values) > 1 else mean


def _table(rows: Sequence[Sequence], headers: Sequence[str], *, align: str | None = None) -> str:
    shown = [[None if value != value else value for value in row] for row in rows]  # NaN as a dash
    return tabulate(
        shown,
        headers=headers,
        floatfmt=".1f",
        tablefmt="github",
        missingval="-",
        colalign=None if align is None else ("left", *[align] * (len(headers) - 1)),
        disable_numparse=align is not None,
    )
