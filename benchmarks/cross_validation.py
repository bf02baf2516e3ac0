#!/usr/bin/env python3
"""
Does cross-validation tell the truth? Hide the masks of some classes (B), cross-validate within the others
(A) as `maskx cross-validate` does, and only then look: train each recipe on the masks of A, and measure it
on B in images that neither has seen.

Prints expected and true figures of each recipe, the rank correlation of the recipes, what the choice costs,
the calibration error of mask scores on B before and after, and the time and memory of the cross-validation,
and writes them to --output. Two estimates of the mean IoU of masks of B are compared with the true one:
that of the hidden classes, and the calibrated scores of B's own masks.
"""

import argparse
import json
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from benchmark_tools import hidden_classes, recipe_argument_parser
from scipy.stats import spearmanr
from tabulate import tabulate
from tqdm import tqdm

from maskx_d2.backends.load import load_frozen_detector
from maskx_d2.data.files import write_json, write_text
from maskx_d2.inference.mask_scores import calibration_error
from maskx_d2.method import Schedule
from maskx_d2.recipes.annotated_images import read_annotated_images
from maskx_d2.recipes.built_in import RECIPES
from maskx_d2.recipes.cross_validation import measure
from maskx_d2.recipes.measurement import see_measured
from maskx_d2.recipes.study import Study, roi_side
from maskx_d2.recipes.training import train_mask_head


def _arguments() -> argparse.Namespace:
    parser = recipe_argument_parser(__doc__, output="output/cross_validation")
    parser.add_argument(
        "--hide", required=True, metavar="CLASS,CLASS,...", help="B, or a file of A's names"
    )
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def _without_masks(annotations: Path, hidden: set[str], path: Path) -> Path:
    content = json.loads(annotations.read_text(encoding="utf-8"))
    ids = {category["id"] for category in content["categories"] if category["name"] in hidden}
    for record in content["annotations"]:
        if record["category_id"] in ids:
            record.pop("segmentation", None)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content))
    return path


def main() -> None:
    args = _arguments()
    detector = load_frozen_detector(args.weights, args.config_file).to(args.device)
    names = detector.class_names
    hidden = hidden_classes(args.hide, names, option="--hide")

    def progress(items, title):
        return tqdm(items, title, file=sys.stderr, leave=False, mininterval=10)

    start = time.perf_counter()
    study = Study.prepare(
        detector,
        _without_masks(args.train[0], {names[i] for i in hidden}, args.output / "train.json"),
        args.train[1],
        args.output,
        recipes={name: replace(recipe, channels=args.channels) for name, recipe in RECIPES.items()},
        num_folds=args.folds,
        schedule=Schedule(steps=args.steps),
        seed=args.seed,
        device=args.device,
        progress=progress,
    )
    print(study.summary(), flush=True)
    result = study.cross_validate(progress=progress)
    calibration = study.calibration(result)
    costs = {
        "minutes": (time.perf_counter() - start) / 60,
        "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }

    val = read_annotated_images(*args.val, names)
    sides = sorted({roi_side(recipe) for recipe in study.recipes.values()})
    seen = see_measured(detector, val.images, sides=sides, progress=lambda i: progress(i, "detections"))
    rows = {}
    for name, recipe in study.recipes.items():
        head = train_mask_head(
            detector,
            study.cache,
            recipe,
            hidden=(),
            schedule=study.schedule,
            seed=args.seed,
            device=args.device,
            progress=lambda steps: progress(steps, "B"),
        )
        outcome = measure(detector, head, seen, val, hidden=hidden, device=args.device)
        rows[name] = {
            "expected_AP": float(np.mean(result.hidden_ap(name))),
            "expected_iou": float(np.mean(result.hidden_iou(name))),
            "true_AP": outcome.mean_ap(hidden),
            "true_iou": outcome.mean_iou(hidden),
        }
        if name == result.best:
            objects = outcome.objects
            of_b = objects[np.isin(objects.classes, hidden)]
            calibrated = calibration(of_b.scores, of_b.areas)
            scores = {
                "expected_iou_by_scores": replace(of_b, ious=calibrated).mean_iou(hidden),
                "mean_iou_of_objects": float(of_b.ious.mean()),
                "mean_score_before": float(of_b.scores.mean()),
                "mean_score_after": float(calibrated.mean()),
                "calibration_error_before": calibration_error(of_b.scores, of_b.ious),
                "calibration_error_after": calibration_error(calibrated, of_b.ious),
            }
    expected, true = ([row[key] for row in rows.values()] for key in ("expected_AP", "true_AP"))
    summary = {
        "hidden": [names[i] for i in hidden],
        "recipes": rows,
        "best": result.best,
        "cost_of_the_choice": max(true) - rows[result.best]["true_AP"],
        "rank_correlation": float(spearmanr(expected, true).statistic),
        "error_of_expected_iou": rows[result.best]["expected_iou"] - rows[result.best]["true_iou"],
        "error_of_expected_iou_by_scores": scores["expected_iou_by_scores"] - rows[result.best]["true_iou"],
        **scores,
        **costs,
    }
    write_json(args.output / "truth.json", summary)
    lines = [[study.recipes[name].title, *row.values()] for name, row in rows.items()]
    headers = ["", "expected AP", "expected IoU", "AP on B", "IoU on B"]
    print(tabulate(lines, headers, "github", floatfmt=("", ".1f", ".3f", ".1f", ".3f")))
    for key, value in summary.items():
        if key not in ("hidden", "recipes"):
            print(f"{key}: {value if isinstance(value, str) else round(value, 3)}")


if __name__ == "__main__":
    main()
