#!/usr/bin/env python3
"""
Recipes on a frozen detector, on any dataset in COCO's format that has masks of all classes: mask AP on
classes with masks (A) and on classes whose masks are hidden (B), and mean mask IoU in ground-truth boxes.

Each split hides the masks of some classes. All rows of a dataset share the detector and its RoI features.
Prints a table, and writes results.json into --output; what is there is not done again, so that rows, splits
and seeds can be added. The photographs of the documentation are PASCAL VOC's, see `maskx prepare voc`.
"""

import argparse
import sys
import time
from dataclasses import replace

from benchmark_tools import hidden_classes, recipe_argument_parser
from tabulate import tabulate
from tqdm import tqdm

from maskx_d2.backends.load import load_frozen_detector
from maskx_d2.data.files import load_json, write_json
from maskx_d2.evaluation.tables import mean_cell
from maskx_d2.method import Recipe, Schedule
from maskx_d2.recipes.annotated_images import read_annotated_images
from maskx_d2.recipes.built_in import BASELINE, RECIPES
from maskx_d2.recipes.cross_validation import measure
from maskx_d2.recipes.folds import balanced_folds, classes_to_measure
from maskx_d2.recipes.measurement import see_measured
from maskx_d2.recipes.roi_cache import fill_cache
from maskx_d2.recipes.study import roi_side
from maskx_d2.recipes.training import train_mask_head

AGNOSTIC = {"predictor": "agnostic"}
DROPOUT = {"embedding_dropout": 0.5}
MLP = {"mlp_layers": 1, "mlp_reduced_channels": 8}
PROJECTION, PAIRWISE, KNOWN = {"projection": 0.3}, {"pairwise": 0.3}, {"known_background": 0.3}
BOTH = {**PROJECTION, **PAIRWISE}


def _rows() -> dict[str, Recipe]:
    """The built-in recipes, and what they are made of."""
    rows = dict(RECIPES)
    heads = {
        "agnostic": ("class-agnostic", AGNOSTIC),
        "cls": ("cls", {}),
        "dropout": ("cls, dropout 0.5", DROPOUT),
        "dropout_mlp": ("cls, dropout 0.5, MLP branch", {**DROPOUT, **MLP}),
        "agnostic_mlp": ("class-agnostic, MLP branch", {**AGNOSTIC, **MLP}),
        "paper": ("the paper's", {"class_embedding": "cls+box", **MLP}),
    }
    losses = {
        "": {},
        "projection": PROJECTION,
        "pairwise": PAIRWISE,
        "known_background": KNOWN,
        "projection_known_background": {**PROJECTION, **KNOWN},
        "all_three": {**BOTH, **KNOWN},
        "all_three_known_0.05": {**BOTH, "known_background": 0.05},
        "projection_pairwise": BOTH,
        "weights_0.1": dict.fromkeys(BOTH, 0.1),
        "weights_1": dict.fromkeys(BOTH, 1.0),
        "weights_3": dict.fromkeys(BOTH, 3.0),
    }
    for head, (title, options) in heads.items():
        for name, weights in losses.items():
            said = ", ".join(f"{loss.replace('_', ' ')} {weight}" for loss, weight in weights.items())
            rows["_".join(filter(None, (head, name)))] = Recipe(
                f"{title}; {said}" if said else title, **options, box_supervision=weights
            )
    rows["deep_agnostic"] = Recipe(
        "class-agnostic, Hourglass-20, ground-truth boxes",
        **AGNOSTIC,
        trunk="hourglass_20",
        train_rois="ground_truth",
    )
    for name, head in (("oracle", "cls"), ("oracle_agnostic", "agnostic"), ("oracle_dropout", "dropout")):
        rows[name] = Recipe(f"oracle: {rows[head].title}", **heads[head][1])
    return rows


ROWS = _rows()


def _is_oracle(name: str) -> bool:
    return name.startswith("oracle")


def _table(results: dict[str, dict]) -> str:
    """A line for each row: mean ± standard deviation over its runs, and paired gains."""
    lines = []
    for name, runs in results.items():
        shared = [run for run in runs if run in results.get(BASELINE, {})]
        oracle = [run for run in runs if results.get("oracle", {}).get(run, {}).get("B")]
        gains = [runs[run]["B"] - results[BASELINE][run]["B"] for run in shared]
        shares = [100 * runs[run]["B"] / results["oracle"][run]["B"] for run in oracle]
        lines.append(
            [
                ROWS[name].title,
                len(runs),
                mean_cell([run["A"] for run in runs.values()]),
                mean_cell([run["B"] for run in runs.values()]),
                mean_cell(gains, sign="+") if gains else "-",
                f"{min(gains):+.1f}" if gains else "-",
                mean_cell(shares) if shares else "-",
                mean_cell([100 * run["iou_B"] for run in runs.values()]),
            ]
        )
    headers = ["", "runs", "A", "B", "gain on B", "lowest", "% of oracle", "mask IoU on B"]
    return tabulate(lines, headers, "github", disable_numparse=True)


def _arguments() -> argparse.Namespace:
    parser = recipe_argument_parser(__doc__, output="output/photographs")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=[*RECIPES, "oracle"], metavar="ROW")
    parser.add_argument(
        "--split",
        action="append",
        metavar="CLASS,CLASS,...",
        help="classes whose masks are hidden, or a file of the classes with masks; repeat for more\n"
        "splits. Default: the first three of four folds of all classes",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--images", type=int, default=8, help="of a step")
    parser.add_argument("--rois", type=int, default=4, help="of an image")
    return parser.parse_args()


def main() -> None:
    args = _arguments()
    detector = load_frozen_detector(args.weights, args.config_file).to(args.device)
    names = detector.class_names
    train, val = (read_annotated_images(*of_part, names) for of_part in (args.train, args.val))
    if args.split:
        splits = [hidden_classes(text, names, option="--split") for text in args.split]
    else:
        splits = balanced_folds(classes_to_measure(train.images, val.images), 4)[:3]
    bar = {"file": sys.stderr, "leave": False}
    sides = sorted({roi_side(ROWS[name]) for name in args.rows})
    cache = fill_cache(
        args.output / "cache",
        detector,
        train.images,
        sides=sides,
        progress=lambda files: tqdm(files, "RoI features", **bar),
    )
    measured = see_measured(
        detector, val.images, sides=sides, progress=lambda images: tqdm(images, "detections", **bar)
    )
    schedule = Schedule(steps=args.steps, images=args.images, rois=args.rois)
    path = args.output / "results.json"
    results = load_json(path, what="results") if path.is_file() else {}
    for seed in args.seeds:
        for name in args.rows:
            recipe = replace(ROWS[name], channels=args.channels)
            outcome = None
            for split in splits:
                run = f"{','.join(names[i] for i in split)}; seed {seed}"
                if run in results.setdefault(name, {}):
                    continue
                start = time.perf_counter()
                if outcome is None or not _is_oracle(name):
                    hidden = [] if _is_oracle(name) else split
                    head = train_mask_head(
                        detector,
                        cache,
                        recipe,
                        hidden=hidden,
                        schedule=schedule,
                        seed=seed,
                        device=args.device,
                    )
                    outcome = measure(detector, head, measured, val, hidden=hidden, device=args.device)
                others = [index for index in range(len(names)) if index not in split]
                results[name][run] = {
                    "A": outcome.mean_ap(others),
                    "B": outcome.mean_ap(split),
                    "iou_A": outcome.mean_iou(others),
                    "iou_B": outcome.mean_iou(split),
                    "seconds": round(time.perf_counter() - start, 1),
                }
                write_json(path, results)
                found = results[name][run]
                print(
                    f"{name:36} {run[:30]:30} seed {seed}: A {found['A']:.1f}, B {found['B']:.1f}, "
                    f"IoU {found['iou_A']:.3f}, {found['iou_B']:.3f} ({found['seconds']:.0f} s)",
                    flush=True,
                )
    print(f"\n{_table(results)}")


if __name__ == "__main__":
    main()
