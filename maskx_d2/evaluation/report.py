"""The report of a comparison of runs: one HTML file that needs no other."""

import base64
import io
import math
from pathlib import Path

import jinja2
from PIL import Image

from maskx_d2.data.coco_json import read_coco
from maskx_d2.data.images import read_image
from maskx_d2.evaluation.average_precision import METRICS
from maskx_d2.evaluation.comparison import Comparison
from maskx_d2.evaluation.merging import readable_detections
from maskx_d2.evaluation.pictures import ClassStyle, by_image, draw_side_by_side
from maskx_d2.evaluation.plots import class_difference_plot, training_curves_plot
from maskx_d2.evaluation.tables import TASK_TITLES

_TEMPLATE = Path(__file__).parent / "report.html.j2"
_PANEL_SIDE = 480  # pixels


def html_report(comparison: Comparison, *, num_images: int = 8, min_score: float = 0.5) -> str:
    """
    Args:
        comparison: the runs.
        num_images: images that are shown with the masks of each run: those with most objects of B.
        min_score: detections below it are not drawn.
    """
    evaluation = comparison.runs[comparison.baseline].evaluation
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    boxes_only = len(evaluation.class_names) - len(evaluation.with_masks)
    return template.render(
        comparison=comparison,
        evaluation=evaluation,
        num_boxes_only=boxes_only,
        metrics=METRICS,
        tables=[_table(comparison, task) for task in comparison.tasks],
        groups=comparison.groups,
        class_plots=[
            (run, TASK_TITLES[task], plot)
            for task in comparison.tasks
            for run in comparison.others
            if (plot := class_difference_plot(comparison, run, task)) is not None
        ],
        unchanged=[
            (run, TASK_TITLES[task])
            for task in comparison.tasks
            for run in comparison.others
            if (pairs := comparison.class_differences(run, task)) and not any(d for _, d in pairs)
        ],
        curves=training_curves_plot(comparison),
        pictures=_pictures(comparison, num_images, min_score),
        num_images=num_images,
    )


def _table(comparison: Comparison, task: str) -> dict:
    """Rows of cells (value, difference to the baseline), either of which may be None."""
    rows = []
    for run in comparison.runs:
        cells = []
        for group in comparison.groups:
            for metric in METRICS:
                value = comparison.value(run, task, group, metric)
                base = comparison.value(comparison.baseline, task, group, metric)
                compared = run != comparison.baseline and not math.isnan(value - base)
                cells.append((None if math.isnan(value) else value, value - base if compared else None))
        rows.append((run, cells))
    return {"title": TASK_TITLES[task], "rows": rows}


def _pictures(comparison: Comparison, num_images: int, min_score: float) -> list[tuple[str, str]]:
    """(file name, data URL) of pictures with ground truth and all runs side by side."""
    evaluation = comparison.runs[comparison.baseline].evaluation
    annotations = Path(evaluation.annotations)
    if num_images == 0 or evaluation.images is None or not annotations.is_file():
        return []
    truth = read_coco(annotations)
    ids_in_a = frozenset(evaluation.category_ids[i] for i in evaluation.with_masks)
    names = dict(zip(evaluation.category_ids, evaluation.class_names, strict=True))
    style = ClassStyle(names=names, with_masks=ids_in_a)
    detections = {
        title: by_image([d for d in run.detections() if d["score"] >= min_score])
        for title, run in comparison.runs.items()
    }
    images = [i for i in truth.imgs.values() if (Path(evaluation.images) / i["file_name"]).is_file()]
    images.sort(key=lambda i: -sum(a["category_id"] not in ids_in_a for a in truth.imgToAnns[i["id"]]))
    pictures = []
    for record in images[:num_images]:
        picture = read_image(Path(evaluation.images) / record["file_name"])
        scale = _PANEL_SIDE / max(picture.size)
        objects = [_with_rle(truth, a) for a in truth.imgToAnns[record["id"]] if not a["iscrowd"]]
        found = {
            title: readable_detections(of_run.get(record["id"], []), len(names))
            for title, of_run in detections.items()
        }
        drawn = draw_side_by_side(picture, {"ground truth": objects, **found}, style, scale=scale)
        pictures.append((record["file_name"], _data_url(drawn)))
    return pictures


def _with_rle(truth, annotation: dict) -> dict:
    if not annotation.get("segmentation"):
        return {key: value for key, value in annotation.items() if key != "segmentation"}
    return {**annotation, "segmentation": truth.annToRLE(annotation)}


def _data_url(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
