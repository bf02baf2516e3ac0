"""The report of a cross-validation: a table, ``results.json``, and one self-contained HTML file."""

import base64
import io
from pathlib import Path

import jinja2
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from tabulate import tabulate

from maskx_d2.data.files import write_json, write_text
from maskx_d2.data.printable import in_plot, printable
from maskx_d2.data.rle import encode
from maskx_d2.evaluation.pictures import ClassStyle, draw_side_by_side
from maskx_d2.evaluation.plots import font_families, svg
from maskx_d2.evaluation.tables import mean_cell
from maskx_d2.inference.mask_scores import ScoreCalibration
from maskx_d2.recipes.built_in import BASELINE
from maskx_d2.recipes.cross_validation import CrossValidation
from maskx_d2.recipes.study import Study

_TEMPLATE = Path(__file__).parent / "report.html.j2"
_PANEL_SIDE = 420  # pixels
_SIZE_BINS = 8


def write_results(study: Study, result: CrossValidation) -> str:
    """
    Write ``results.json``, ``recipe.yaml`` and ``report.html`` into the folder of the study.

    Returns:
        What the command prints.
    """
    calibration = study.calibration(result)
    best = study.recipes[result.best]
    write_json(study.folder / "results.json", results(study, result, calibration))
    write_text(study.folder / "recipe.yaml", study.detector.recipe_yaml(best, study.schedule))
    write_text(study.folder / "report.html", html_report(study, result, calibration))
    expected = _expected(result, result.best)
    of_teacher = _teacher_sentence(result)
    return f"""
{text_table(study, result)}

Mean ± standard deviation of {len(result.folds)} folds; IoU in per cent.

Best recipe: {best.title}. Expect masks of classes without masks to have a mean IoU of \
{expected["mean"]:.2f} (± {expected["deviation_over_classes"]:.2f} between classes).{of_teacher}

{study.folder / "report.html"}   classes, sizes, pictures
{study.folder / "recipe.yaml"}   the config of that recipe
{study.folder / "results.json"}  all figures"""


def table(study: Study, result: CrossValidation) -> tuple[list[str], list[list[str]]]:
    """Headers and rows: mask AP and IoU on hidden classes of each recipe, mean ± deviation over folds."""
    headers = ["recipe", "mask AP on hidden classes", "mask IoU in their boxes", "mask AP on the others"]
    has_baseline = BASELINE in result.outcomes and len(result.outcomes) > 1
    if has_baseline:
        headers.insert(2, f"gain over {study.recipes[BASELINE].title}")
    rows = []
    for name in result.outcomes:
        cells = [
            study.recipes[name].title,
            mean_cell(result.hidden_ap(name)),
            mean_cell([100 * iou for iou in result.hidden_iou(name)]),
            mean_cell(result.seen_ap(name)),
        ]
        if has_baseline:
            pairs = zip(result.hidden_ap(name), result.hidden_ap(BASELINE), strict=True)
            gains = [value - before for value, before in pairs]
            cells.insert(2, "-" if name == BASELINE else mean_cell(gains, sign="+"))
        rows.append(cells)
    if result.teacher is not None:
        iou = mean_cell([100 * value for value in result.teacher_iou()])
        rows.append(["masks of the teacher, as they are", *(["-"] * (1 + has_baseline)), iou, "-"])
    return headers, rows


def text_table(study: Study, result: CrossValidation) -> str:
    """The table in Markdown."""
    headers, rows = table(study, result)
    align = ("left", *["right"] * (len(headers) - 1))
    return tabulate(rows, headers, tablefmt="github", colalign=align, disable_numparse=True)


def results(study: Study, result: CrossValidation, calibration: ScoreCalibration) -> dict:
    """What ``results.json`` holds."""
    names = result.class_names
    return {
        "best": result.best,
        "expected_mask_iou": _expected(result, result.best),
        "mask_score_calibration": calibration.as_dict(),
        **({} if result.teacher is None else {"teacher": {"mask_iou": result.teacher_iou()}}),
        "folds": [[names[index] for index in fold] for fold in result.folds],
        "num_images": {"train": len(study.train.images), "measured": len(study.held_out.images)},
        "schedule": vars(study.schedule),
        "seed": study.seed,
        "recipes": {
            name: {
                "title": study.recipes[name].title,
                "hidden": {"AP": result.hidden_ap(name), "mask_iou": result.hidden_iou(name)},
                "others": {"AP": result.seen_ap(name)},
                "classes": {
                    names[index]: {
                        "AP": outcome.average_precision[index],
                        "mask_iou": outcome.mean_iou([index]),
                    }
                    for outcome in result.outcomes[name]
                    for index in outcome.hidden
                },
            }
            for name in result.outcomes
        },
    }


def _teacher_sentence(result: CrossValidation) -> str:
    """Whether the masks of the teacher are better as they are; empty without one."""
    if result.teacher is None:
        return ""
    of_teacher, of_best = (
        float(np.nanmean(values)) for values in (result.teacher_iou(), result.hidden_iou(result.best))
    )
    is_better = "better" if of_teacher > of_best else "not better"
    return (
        f" In ground-truth boxes, the teacher's own masks are {is_better} than those of this recipe: "
        f"{of_teacher:.2f} against {of_best:.2f}."
    )


def _expected(result: CrossValidation, name: str) -> dict[str, float]:
    """Mean mask IoU of hidden classes, and its standard deviation over classes."""
    of_classes = [
        outcome.mean_iou([index]) for outcome in result.outcomes[name] for index in outcome.hidden
    ]
    return {"mean": float(np.nanmean(of_classes)), "deviation_over_classes": float(np.nanstd(of_classes))}


def html_report(study: Study, result: CrossValidation, calibration: ScoreCalibration) -> str:
    """The table, the classes, IoU by size, and masks of hidden classes with the truth beside."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_shown_in_page
    )
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    headers, rows = table(study, result)
    return template.render(
        headers=headers,
        rows=rows,
        best=study.recipes[result.best].title,
        best_place=list(result.outcomes).index(result.best),
        expected=_expected(result, result.best),
        folds=[[result.class_names[index] for index in fold] for fold in result.folds],
        num_train=len(study.train.images),
        num_measured=len(study.held_out.images),
        steps=study.schedule.steps,
        class_plot=_class_plot(result),
        size_plot=_size_plot(study, result),
        score_plot=_score_plot(result, calibration),
        error=calibration.error,
        teacher_sentence=_teacher_sentence(result),
        pictures=_pictures(study, result),
    )


def _shown_in_page(value):
    """Escape names, which may hold anything. Plots have a type of their own, which marks them as safe."""
    return printable(str(value)) if type(value) is str else value


def _class_plot(result: CrossValidation) -> str:
    """A bar for each class: mean IoU of its masks when it was hidden."""
    ious = {
        index: outcome.mean_iou([index])
        for outcome in result.outcomes[result.best]
        for index in outcome.hidden
    }
    order = sorted(ious, key=ious.get, reverse=True)
    figure = Figure(figsize=(max(5, 1.5 + 0.24 * len(order)), 3.4), layout="constrained")
    axes = figure.subplots()
    axes.bar(range(len(order)), [ious[index] for index in order], color="#0099cc")
    names = [in_plot(result.class_names[index]) for index in order]
    axes.set_xticks(range(len(order)), names, rotation=90, fontsize=8, fontfamily=font_families(names))
    axes.set_ylabel("mean IoU, class hidden")
    axes.set_ylim(0, 1)
    axes.grid(axis="y", linewidth=0.4)
    axes.set_axisbelow(True)
    return svg(figure)


def _size_plot(study: Study, result: CrossValidation) -> str:
    """Mean IoU of hidden classes against the side of the box, a line for each recipe."""
    figure = Figure(figsize=(6.5, 3.6), layout="constrained")
    axes = figure.subplots()
    for name in result.outcomes:
        objects = result.hidden_objects(name)
        parts = np.array_split(np.argsort(objects.areas), min(_SIZE_BINS, len(objects.areas)))
        sides = [np.sqrt(np.median(objects.areas[part])) for part in parts]
        is_best = name == result.best
        axes.plot(
            sides,
            [objects.ious[part].mean() for part in parts],
            marker="o",
            markersize=3,
            linewidth=2 if is_best else 1,
            label=in_plot(study.recipes[name].title),
        )
    axes.set_xlabel("square root of the area of the box, pixels")
    axes.set_ylabel("mean IoU, classes hidden")
    axes.set_ylim(0, 1)
    axes.grid(linewidth=0.4)
    axes.legend(fontsize=8)
    return svg(figure)


def _score_plot(result: CrossValidation, calibration: ScoreCalibration) -> str:
    """Mean IoU against the mask score, before and after calibration."""
    objects = result.hidden_objects(result.best)
    figure = Figure(figsize=(4.2, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8)
    scores = {"raw": objects.scores, "calibrated": calibration(objects.scores, objects.areas)}
    for title, of_objects in scores.items():
        parts = np.array_split(np.argsort(of_objects), min(_SIZE_BINS, len(of_objects)))
        points = [(of_objects[part].mean(), objects.ious[part].mean()) for part in parts]
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=title)
    axes.set_xlabel("mean mask score")
    axes.set_ylabel("mean IoU")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.grid(linewidth=0.4)
    axes.legend(fontsize=8)
    return svg(figure)


def _pictures(study: Study, result: CrossValidation) -> list[tuple[str, str]]:
    """For each hidden class, the mask of median IoU beside the true one, as data URLs with captions."""
    places = [(seen.image, index) for seen in study.measured for index in seen.with_mask]
    style = ClassStyle(names=dict(enumerate(result.class_names)), with_masks=frozenset())
    pictures = []
    for outcome in result.outcomes[result.best]:
        ious, classes = np.array(outcome.ious), np.array(outcome.classes)
        for index in outcome.hidden:
            of_class = np.flatnonzero(classes == index)
            if len(of_class) == 0:
                continue
            median = of_class[np.argsort(ious[of_class])[len(of_class) // 2]]
            image, place = places[median]
            x0, y0, x1, y1 = image.boxes[place].tolist()
            record = {"category_id": index, "bbox": [x0, y0, x1 - x0, y1 - y0]}
            found = {
                "truth": [{**record, "segmentation": encode(image.mask(place))}],
                "predicted": [{**record, "segmentation": outcome.masks[median]}],
            }
            picture = image.read()
            scale = min(1, _PANEL_SIDE / max(picture.size))
            drawn = draw_side_by_side(picture, found, style, scale=scale)
            caption = f"{result.class_names[index]}: IoU {ious[median]:.2f}"
            pictures.append((caption, _data_url(drawn)))
    return pictures


def _data_url(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
