"""Runs compared with a baseline: which can be, their tables, and the report in Markdown."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from maskx_d2.data.printable import in_markdown
from maskx_d2.evaluation.average_precision import METRICS
from maskx_d2.evaluation.run_files import Run, read_run
from maskx_d2.evaluation.tables import FREQUENCY_TITLES, GROUP_TITLES, TASK_TITLES, number


@dataclass(frozen=True)
class Comparison:
    """Runs that were evaluated on the same data and report on the same split."""

    runs: dict[str, Run]
    """Title -> run."""

    baseline: str
    """The title of the run that the others are compared with."""

    @property
    def others(self) -> list[str]:
        """Titles of the runs that are not the baseline."""
        return [title for title in self.runs if title != self.baseline]

    @property
    def tasks(self) -> list[str]:
        """``"segm"``, ``"bbox"``: those that any run has."""
        return [t for t in TASK_TITLES if any(t in run.evaluation.by_group for run in self.runs.values())]

    @property
    def groups(self) -> dict[str, str]:
        """Groups of classes that AP is reported on, and their titles."""
        by_task = self.runs[self.baseline].evaluation.by_group.values()
        known = GROUP_TITLES | FREQUENCY_TITLES
        return {group: title for group, title in known.items() if any(group in by for by in by_task)}

    def value(self, title: str, task: str, group: str, metric: str) -> float:
        """In per cent; NaN where a run or the ground truth has none."""
        by_group = self.runs[title].evaluation.by_group
        return number(by_group.get(task, {}).get(group, {}).get(metric))

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
        folders: output folders of evaluated runs, of either host.
        baseline: one of them; the first if None.

    Raises:
        FileNotFoundError: a folder holds no evaluated run.
        ValueError: two runs cannot be compared, and why.
    """
    if baseline is not None and baseline.resolve() not in [folder.resolve() for folder in folders]:
        raise ValueError(f"the baseline {baseline} is not among the runs {', '.join(map(str, folders))}")
    runs = {title: read_run(folder) for title, folder in _titles(folders).items()}
    first, *others = runs.values()
    for run in others:
        _check_comparable(first, run)
    chosen = folders[0] if baseline is None else baseline
    (title,) = [t for t, run in runs.items() if run.folder.resolve() == chosen.resolve()]
    return Comparison(runs, title)


def _titles(folders: Sequence[Path]) -> dict[str, Path]:
    """Names of the folders, or, where two have one name, paths."""
    resolved = [folder.resolve() for folder in folders]
    twice = [str(folder) for i, folder in enumerate(folders) if resolved[i] in resolved[:i]]
    if twice:
        raise ValueError(f"the run {twice[0]} is given twice")
    names = [folder.name for folder in resolved]
    unique = len(set(names)) == len(names)
    return dict(zip(names if unique else map(str, folders), folders, strict=True))


def _check_comparable(first: Run, run: Run) -> None:
    a, b = first.evaluation, run.evaluation
    both = f"{first.folder} and {run.folder} cannot be compared"
    if (a.class_names, a.category_ids) != (b.class_names, b.category_ids):
        raise ValueError(
            f"{both}: they were evaluated on other classes, {a.annotations} and {b.annotations}"
        )
    if a.annotations_sha256 != b.annotations_sha256:
        raise ValueError(f"{both}: they were evaluated on other data, {a.annotations} and {b.annotations}")
    if a.with_masks != b.with_masks:
        other = sorted(set(a.with_masks) ^ set(b.with_masks))
        names = ", ".join(a.class_names[i] for i in other[:5]) + (", ..." if len(other) > 5 else "")
        raise ValueError(
            f"{both}: they report on other splits, which differ in {len(other)} classes ({names}); "
            "TEST.CLASS_SPLIT, on torchvision data.class_split, makes a run report on another than its own"
        )


# ---- Markdown ----


def markdown_report(comparison: Comparison) -> str:
    """A table for each task and side of the split: a row for each run, its metrics and differences."""
    evaluation = comparison.runs[comparison.baseline].evaluation
    num_a, num_classes = len(evaluation.with_masks), len(evaluation.class_names)
    annotations, baseline = in_markdown(Path(evaluation.annotations).name), in_markdown(comparison.baseline)
    parts = [
        "# Comparison of runs",
        f"Evaluated on {annotations}: {num_a} classes with masks (A), {num_classes - num_a} with boxes "
        f"only (B). In brackets the difference to {baseline}.",
    ]
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
    value = comparison.value(run, task, group, metric)
    if math.isnan(value):
        return "-"
    if run == comparison.baseline:
        return f"{value:.1f}"
    difference = value - comparison.value(comparison.baseline, task, group, metric)
    return f"{value:.1f}" if math.isnan(difference) else f"{value:.1f} ({difference:+.1f})"
