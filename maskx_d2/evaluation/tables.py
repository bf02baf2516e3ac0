"""Tables of AP on A, on B and on all classes."""

from collections.abc import Mapping, Sequence

from tabulate import tabulate

from maskx_d2.evaluation.average_precision import METRICS

GROUP_TITLES = {"A": "A: with masks", "B": "B: boxes only", "all": "all"}
FREQUENCY_TITLES = {"frequent": "frequent third", "common": "middle third", "rare": "rare third"}
"""Groups that are there where the annotations say how many training instances each class has."""

TASK_TITLES = {"segm": "mask", "bbox": "box"}

Results = Mapping[str, Mapping[str, Mapping[str, float | None]]]
"""
``{"segm"|"bbox": {"A"|"B"|"all"|"frequent"|"common"|"rare": {metric: value}}}``; NaN or None where there is
no ground truth.
"""


def group_table(results: Results) -> str:
    """One run: a row for each group of classes and task, a column for each metric."""
    rows = [
        [TASK_TITLES[task], title, *(results[task][group][m] for m in METRICS)]
        for task in TASK_TITLES
        if task in results
        for group, title in (GROUP_TITLES | FREQUENCY_TITLES).items()
        if group in results[task]
    ]
    return _table(rows, headers=["", "classes", *METRICS])


def comparison_table(runs: Mapping[str, Results], *, metric: str = "AP") -> str:
    """Several runs: a row for each, mask and box AP on A, B and all."""
    rows = [
        [name, *(results[task][group][metric] for task in TASK_TITLES for group in GROUP_TITLES)]
        for name, results in runs.items()
    ]
    headers = [f"{title} {metric} on {g}" for title in TASK_TITLES.values() for g in GROUP_TITLES]
    return _table(rows, headers=["", *headers])


def _table(rows: Sequence[Sequence], headers: Sequence[str]) -> str:
    shown = [[None if value != value else value for value in row] for row in rows]  # NaN as a dash
    return tabulate(shown, headers=headers, floatfmt=".1f", tablefmt="github", missingval="-")
