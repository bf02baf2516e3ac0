"""Compares runs, or groups of runs, with a baseline: checks, which one wins, and a Markdown report."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from tabulate import tabulate

from maskx_d2.data.errors import InputError
from maskx_d2.data.files import real_path
from maskx_d2.data.printable import in_markdown
from maskx_d2.evaluation.average_precision import METRICS
from maskx_d2.evaluation.run_files import Run, read_run
from maskx_d2.evaluation.tables import FREQUENCY_TITLES, GROUP_TITLES, TASK_TITLES, mean_cell, number


@dataclass(frozen=True)
class Comparison:
    """Runs that were evaluated on the same data and report on the same split."""

    runs: dict[str, Run]
    """Title -> run; for groups, the first run of each."""

    baseline: str
    """The title of the run that the others are compared with."""

    more_seeds: tuple[dict[str, Run], ...] = ()
    """For groups, their second, third, ... runs; the runs of one entry are compared with each other."""

    @property
    def others(self) -> list[str]:
        """Titles of the runs that are not the baseline."""
        return [title for title in self.runs if title != self.baseline]

    @property
    def tasks(self) -> list[str]:
        """``"segm"`` and ``"bbox"``, as far as any run has them."""
        return [t for t in TASK_TITLES if any(t in run.evaluation.by_group for run in self.runs.values())]

    @property
    def groups(self) -> dict[str, str]:
        """Groups of classes that AP is reported on, and their titles."""
        by_task = self.runs[self.baseline].evaluation.by_group.values()
        known = GROUP_TITLES | FREQUENCY_TITLES
        return {group: title for group, title in known.items() if any(group in by for by in by_task)}

    @property
    def num_seeds(self) -> int:
        """Number of runs for each title."""
        return 1 + len(self.more_seeds)

    def values(self, title: str, task: str, group: str, metric: str) -> list[float]:
        """The value of each seed, in per cent; NaN if the run or the ground truth has none."""
        of_seeds = (runs[title].evaluation.by_group for runs in (self.runs, *self.more_seeds))
        return [number(by_group.get(task, {}).get(group, {}).get(metric)) for by_group in of_seeds]

    def gains(
        self, title: str, task: str, group: str, metric: str, *, over: str | None = None
    ) -> list[float]:
        """The gain of each seed over the run titled ``over``, or over the baseline, with the same seed."""
        own = self.values(title, task, group, metric)
        others = self.values(over or self.baseline, task, group, metric)
        return [value - other for value, other in zip(own, others, strict=True)]

    def class_differences(self, title: str, task: str) -> list[tuple[int, float]]:
        """AP of each class against the baseline, as (class index, difference), the largest gain first."""
        baseline, run = (self.runs[t].evaluation.by_class.get(task) for t in (self.baseline, title))
        if baseline is None or run is None:
            return []
        pairs = enumerate(zip(run, baseline, strict=True))
        differences = [(i, number(value) - number(base)) for i, (value, base) in pairs]
        return sorted((d for d in differences if not math.isnan(d[1])), key=lambda d: (-d[1], d[0]))


def compare_runs(folders: Sequence[Path], *, baseline: Path | None = None) -> Comparison:
    """
    Args:
        folders: output folders of evaluated runs, of either backend.
        baseline: one of them; the first if None.

    Raises:
        FileNotFoundError: a folder holds no evaluated run.
        ValueError: two runs cannot be compared; the message says why.
    """
    if baseline is not None and real_path(baseline) not in [real_path(folder) for folder in folders]:
        raise InputError(f"the baseline {baseline} is not among the runs {', '.join(map(str, folders))}")
    runs = {title: read_run(folder) for title, folder in _titles(folders).items()}
    first, *others = runs.values()
    for run in others:
        _check_comparable(first, run)
    chosen = folders[0] if baseline is None else baseline
    (title,) = [t for t, run in runs.items() if real_path(run.folder) == real_path(chosen)]
    return Comparison(runs, title)


def compare_groups(groups: Mapping[str, Sequence[Path]], *, baseline: str | None = None) -> Comparison:
    """
    Args:
        groups: title -> output folders of runs that differ only in their seed. The first runs of all groups
            are compared with each other, then the second runs, and so on.
        baseline: a title; the first if None.

    Raises:
        FileNotFoundError: a folder holds no evaluated run.
        ValueError: groups have different sizes, or two runs cannot be compared; the message says why.
    """
    if baseline is not None and baseline not in groups:
        raise InputError(f"the baseline {baseline} is not among the groups {', '.join(groups)}")
    _check_once([folder for folders in groups.values() for folder in folders])
    sizes = {title: len(folders) for title, folders in groups.items()}
    if len(set(sizes.values())) > 1:
        numbers = ", ".join(f"{title} {size}" for title, size in sizes.items())
        raise InputError(f"groups have different numbers of runs ({numbers}), expected the same in each")
    of_seeds = [
        {title: read_run(folder) for title, folder in zip(groups, folders, strict=True)}
        for folders in zip(*groups.values(), strict=True)
    ]
    for seed in of_seeds:
        first, *others = seed.values()
        for run in others:
            _check_comparable(first, run)
        _check_same_split(next(iter(of_seeds[0].values())), first)
    first, *more = of_seeds
    return Comparison(first, baseline or next(iter(groups)), tuple(more))


def _titles(folders: Sequence[Path]) -> dict[str, Path]:
    """Names of the folders as titles, or their paths if two have the same name."""
    _check_once(folders)
    names = [real_path(folder).name for folder in folders]
    unique = len(set(names)) == len(names)
    return dict(zip(names if unique else map(str, folders), folders, strict=True))


def _check_once(folders: Sequence[Path]) -> None:
    resolved = [real_path(folder) for folder in folders]
    twice = [str(folder) for i, folder in enumerate(folders) if resolved[i] in resolved[:i]]
    if twice:
        raise InputError(f"the run {twice[0]} is given twice")


def _check_comparable(first: Run, run: Run) -> None:
    _check_same_split(first, run)
    a, b = first.evaluation, run.evaluation
    if a.annotations_sha256 != b.annotations_sha256:
        raise InputError(
            f"{first.folder} and {run.folder} cannot be compared: they were evaluated on different data, "
            f"{a.annotations} and {b.annotations}"
        )


def _check_same_split(first: Run, run: Run) -> None:
    """For runs of two seeds, whose data may differ."""
    a, b = first.evaluation, run.evaluation
    both = f"{first.folder} and {run.folder} cannot be compared"
    if (a.class_names, a.category_ids) != (b.class_names, b.category_ids):
        raise InputError(
            f"{both}: they were evaluated on different classes, {a.annotations} and {b.annotations}"
        )
    if a.with_masks != b.with_masks:
        other = sorted(set(a.with_masks) ^ set(b.with_masks))
        names = ", ".join(a.class_names[i] for i in other[:5]) + (", ..." if len(other) > 5 else "")
        raise InputError(
            f"{both}: they report on different splits, which differ in {len(other)} classes ({names}); "
            "TEST.MASKX_CLASS_SPLIT, on torchvision data.class_split, sets the split that a run reports on"
        )


def headline(comparison: Comparison) -> str | None:
    """The best run on B, its gain over the baseline and over the second best, and in how many seeds."""
    evaluation = comparison.runs[comparison.baseline].evaluation
    group = "B" if evaluation.has_two_sides else "all"
    for task in comparison.tasks:
        values = {title: comparison.values(title, task, group, "AP") for title in comparison.runs}
        complete = {title: of_run for title, of_run in values.items() if not any(map(math.isnan, of_run))}
        if len(complete) > 1:
            break
    else:
        return None
    best, second, *_ = sorted(complete, key=lambda title: -fmean(complete[title]))
    where = "the classes with boxes only" if group == "B" else "all classes"
    spread = f" over {comparison.num_seeds} seeds" if comparison.more_seeds else ""
    said = [
        f"On {where} {best} wins: {TASK_TITLES[task]} AP {mean_cell(complete[best])}{spread}",
        *(
            _ahead(comparison, best, other, task, group)
            for other in dict.fromkeys([comparison.baseline, second])
            if other != best and other in complete
        ),
    ]
    return ", ".join(said) + "."


def _ahead(comparison: Comparison, best: str, other: str, task: str, group: str) -> str:
    gains = comparison.gains(best, task, group, "AP", over=other)
    said = f"{mean_cell(gains, sign='+')} over {other}"
    if not comparison.more_seeds:
        return said
    return f"{said} (better in {sum(gain > 0 for gain in gains)} of {len(gains)} seeds)"


# ---- Markdown ----


def markdown_report(comparison: Comparison) -> str:
    """A table for each task and side of the split, with the metrics and differences of each run."""
    evaluation = comparison.runs[comparison.baseline].evaluation
    num_a, num_classes = len(evaluation.with_masks), len(evaluation.class_names)
    annotations, baseline = in_markdown(Path(evaluation.annotations).name), in_markdown(comparison.baseline)
    seeds = ""
    if comparison.more_seeds:
        seeds = f" Mean ± standard deviation of {comparison.num_seeds} seeds; differences seed by seed."
    parts = [
        "# Comparison of runs",
        f"Evaluated on {annotations}: {num_a} classes with masks (A), {num_classes - num_a} with boxes "
        f"only (B).{f' In brackets the difference to {baseline}.' if comparison.others else ''}{seeds}",
    ]
    if said := headline(comparison):
        parts.insert(1, f"**{in_markdown(said)}**")
    for task in comparison.tasks:
        for group, title in comparison.groups.items():
            rows = [
                [in_markdown(run), *(_cell(comparison, run, task, group, metric) for metric in METRICS)]
                for run in comparison.runs
            ]
            table = tabulate(rows, headers=["", *METRICS], tablefmt="github", disable_numparse=True)
            parts.append(f"## {TASK_TITLES[task].capitalize()} AP on {title}\n\n{table}")
    return "\n\n".join(parts) + "\n"


def _cell(comparison: Comparison, run: str, task: str, group: str, metric: str) -> str:
    value = mean_cell(comparison.values(run, task, group, metric))
    gain = mean_cell(comparison.gains(run, task, group, metric), sign="+")
    return value if run == comparison.baseline or gain == "-" else f"{value} ({gain})"
