"""The report on a comparison of runs: one self-contained HTML file."""

import base64
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import jinja2
from PIL import Image

from maskx_d2.data.errors import InputError
from maskx_d2.data.files import file_digest, real_path
from maskx_d2.data.images import MAX_MEGAPIXELS, read_image
from maskx_d2.data.printable import printable
from maskx_d2.data.pycocotools_coco import read_coco
from maskx_d2.data.rle import check_rle
from maskx_d2.evaluation.average_precision import METRICS
from maskx_d2.evaluation.comparison import Comparison, headline
from maskx_d2.evaluation.merging import readable_detections
from maskx_d2.evaluation.pictures import (
    BOXES_ONLY_COLOURS,
    WITH_MASKS_COLOURS,
    ClassStyle,
    by_image,
    draw_side_by_side,
)
from maskx_d2.evaluation.plots import class_difference_plot, training_curves_plot
from maskx_d2.evaluation.run_files import DETECTIONS_FILE
from maskx_d2.evaluation.tables import TASK_TITLES, mean_cell

_TEMPLATE = Path(__file__).parent / "report.html.j2"
_PANEL_SIDE = 480  # pixels


def html_report(
    comparison: Comparison,
    *,
    num_images: int = 8,
    min_score: float = 0.5,
    max_megapixels: float = MAX_MEGAPIXELS,
    images_root: Path | None = None,
) -> str:
    """
    Args:
        comparison: the runs.
        num_images: number of images to show with the masks of each run: those with the most objects of B.
        min_score: detections below it are not drawn.
        max_megapixels: larger images are refused.
        images_root: folder of the images, if they have moved since the evaluation.

    Raises:
        ValueError: an image to show is outside its folder, or a run's detections in it are broken.
    """
    evaluation = comparison.runs[comparison.baseline].evaluation
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_shown_in_page
    )
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    pictures, why_none = _pictures(comparison, num_images, min_score, max_megapixels, images_root)
    boxes_only = len(evaluation.class_names) - len(evaluation.with_masks)
    return template.render(
        comparison=comparison,
        headline=headline(comparison),
        folders={
            title: [runs[title].folder for runs in (comparison.runs, *comparison.more_seeds)]
            for title in comparison.runs
        },
        sides=[("A: trained with masks", WITH_MASKS_COLOURS), ("B: boxes only", BOXES_ONLY_COLOURS)],
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
        pictures=pictures,
        why_no_pictures=why_none,
    )


def _shown_in_page(value):
    """Escape names, which may hold anything. Plots have a type of their own, which marks them as safe."""
    return printable(str(value)) if type(value) is str or isinstance(value, Path) else value


def _table(comparison: Comparison, task: str) -> dict:
    """Rows of cells: the value and, except for the baseline, the difference as "gain", "loss" or "same"."""
    rows = []
    for run in comparison.runs:
        cells = []
        for group in comparison.groups:
            for metric in METRICS:
                gains = comparison.gains(run, task, group, metric)
                compared = run != comparison.baseline and not any(map(math.isnan, gains))
                difference = (mean_cell(gains, sign="+"), _direction(fmean(gains))) if compared else None
                cells.append((mean_cell(comparison.values(run, task, group, metric)), difference))
        rows.append((run, cells))
    return {"title": TASK_TITLES[task], "rows": rows}


def _direction(difference: float) -> str:
    """The direction of a difference, rounded to one decimal."""
    return "gain" if difference >= 0.05 else "loss" if difference <= -0.05 else "same"


def _pictures(
    comparison: Comparison,
    num_images: int,
    min_score: float,
    max_megapixels: float,
    images_root: Path | None,
) -> tuple[list[tuple[str, str]], str | None]:
    """
    (file name, data URL) of pictures with ground truth and all runs side by side, or why there are none.
    """
    evaluation = comparison.runs[comparison.baseline].evaluation
    annotations = Path(evaluation.annotations)
    if num_images == 0:
        return [], None
    root = images_root or (None if evaluation.images is None else Path(evaluation.images))
    if root is None or not root.is_dir() or not annotations.is_file():
        return [], f"The images of the evaluation are no longer in their folder: {root}."
    if file_digest(annotations) != evaluation.annotations_sha256:
        return [], f"The annotations have changed since the evaluation: {annotations}."
    truth = read_coco(annotations)
    ids_in_a = frozenset(evaluation.category_ids[i] for i in evaluation.with_masks)
    names = dict(zip(evaluation.category_ids, evaluation.class_names, strict=True))
    style = ClassStyle(names=names, with_masks=ids_in_a)
    detections = {
        title: by_image([d for d in run.detections() if d["score"] >= min_score])
        for title, run in comparison.runs.items()
    }
    images = [i for i in truth.imgs.values() if os.path.isfile(root / i["file_name"])]
    images.sort(key=lambda i: -sum(a["category_id"] not in ids_in_a for a in truth.imgToAnns[i["id"]]))
    pictures = []
    for record in images[:num_images]:
        path = root / record["file_name"]
        if not real_path(path).is_relative_to(real_path(root)):
            raise InputError(
                f"image {path} of {annotations} is outside of {root}, where the images should be: to show "
                "it, give its folder with --images-root"
            )
        picture = read_image(path, max_megapixels=max_megapixels)
        scale = _PANEL_SIDE / max(picture.size)
        objects = [_with_rle(truth, a) for a in truth.imgToAnns[record["id"]] if not a["iscrowd"]]
        found = {}
        for title, of_run in detections.items():
            found[title] = readable_detections(of_run.get(record["id"], []), len(names))
            _check_masks(found[title], picture, comparison.runs[title].folder)
        drawn = draw_side_by_side(picture, {"ground truth": objects, **found}, style, scale=scale)
        pictures.append((record["file_name"], _data_url(drawn)))
    return pictures, None


def _check_masks(detections: Sequence[Mapping], picture: Image.Image, run: Path) -> None:
    """Check masks before pycocotools decodes them."""
    for mask in (d["segmentation"] for d in detections if "segmentation" in d):
        try:
            check_rle(mask)
        except ValueError as error:
            raise InputError(f"{run}: a detection of {DETECTIONS_FILE} {error}") from error
        if tuple(mask["size"]) != (picture.height, picture.width):
            raise InputError(
                f"{run}: a mask of {DETECTIONS_FILE} has size {mask['size']}, expected "
                f"[{picture.height}, {picture.width}], the size of its image"
            )


def _with_rle(truth, annotation: dict) -> dict:
    if not annotation.get("segmentation"):
        return {key: value for key, value in annotation.items() if key != "segmentation"}
    return {**annotation, "segmentation": truth.annToRLE(annotation)}


def _data_url(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
