"""The files that a training run leaves, whichever its host."""

from pathlib import Path

from maskx_d2.data.files import write_json
from maskx_d2.evaluation.tables import Results

EVALUATION_FOLDER = "inference"
RESULTS_FILE = "ap_by_group.json"
"""AP on A, on B and on all, in the evaluation folder."""

DETECTIONS_FILE = "coco_instances_results.json"
"""Detections in COCO's results format, in the evaluation folder."""

METRICS_FILE = "metrics.json"
"""Losses, learning rate and results, a line of JSON for each time they were logged."""


def write_results(folder: Path, by_group: Results) -> None:
    """Write :data:`RESULTS_FILE`."""
    write_json(folder / RESULTS_FILE, by_group)
