#!/usr/bin/env python3
"""
Students of imperfect teachers: mask heads that learn classes without masks (B) from masks that are made
worse on purpose. Each true mask is eroded, shifted, or joined with those of overlapping objects, which are
the usual faults of promptable models, by an amount that differs from object to object. The scores of these
masks are their true IoU ("informed"), or random.

For each teacher: IoU of its own masks on B, and IoU and mask AP of the student, against those of the same
recipe with boxes alone. Prints a table and writes results.json into --output; what is there is not done
again.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pycocotools.mask as mask_util
import torch
from benchmark_tools import hidden_classes, recipe_argument_parser
from scipy.ndimage import binary_erosion, shift
from tabulate import tabulate
from tqdm import tqdm

from maskx_d2.backends.load import load_frozen_detector
from maskx_d2.data.files import load_json, write_json
from maskx_d2.data.rle import encode
from maskx_d2.evaluation.tables import mean_cell
from maskx_d2.method import Schedule
from maskx_d2.recipes.annotated_images import AnnotatedImage, read_annotated_images
from maskx_d2.recipes.built_in import RECIPES, WITH_TEACHER
from maskx_d2.recipes.cross_validation import measure
from maskx_d2.recipes.measurement import masks_of_teacher, see_measured
from maskx_d2.recipes.roi_cache import RoiCache, Rois, average_to_cells, fill_cache
from maskx_d2.recipes.study import roi_side
from maskx_d2.recipes.training import train_mask_head

SHARE = 0.15  # of the box, in the mean
SCORES = ("informed", "random")
BOXES_ALONE = "boxes alone"


def eroded(mask: np.ndarray, share: float, box: np.ndarray, others: np.ndarray, direction: float):
    """Without a rim, ``share`` of the shorter side of the box wide in all."""
    width = round(share * min(box[2] - box[0], box[3] - box[1]))
    return binary_erosion(mask, np.ones((width + 1, width + 1))) if width else mask


def shifted(mask: np.ndarray, share: float, box: np.ndarray, others: np.ndarray, direction: float):
    """By ``share`` of the box in a random direction."""
    offset = share * np.array([np.sin(direction), np.cos(direction)])
    sides = np.array([box[3] - box[1], box[2] - box[0]])
    return shift(mask, np.round(offset * sides), order=0)


def joined(mask: np.ndarray, share: float, box: np.ndarray, others: np.ndarray, direction: float):
    """With what other objects cover in the box."""
    in_box = np.zeros_like(mask)
    in_box[round(box[1]) : round(box[3]), round(box[0]) : round(box[2])] = True
    return mask | (others & in_box)


FAULTS: dict[str, Callable] = {"eroded": eroded, "shifted": shifted, "joined": joined}


@dataclass(frozen=True)
class Teacher:
    """An imperfect teacher of some images."""

    fault: str
    scores: str
    seed: int

    def taught(self, image: AnnotatedImage, index: int) -> AnnotatedImage:
        """
        Args:
            image: with true masks.
            index: of the image, for random numbers.
        """
        generator = np.random.default_rng([self.seed, index])
        true = [image.mask(i).astype(bool) if m else None for i, m in enumerate(image.masks)]
        masks, scores = [], []
        for i, mask in enumerate(true):
            share, direction = generator.uniform(0, 2 * SHARE), generator.uniform(0, 2 * np.pi)
            guess = generator.uniform(0.5, 1)
            if mask is None:
                masks.append(None)
                scores.append(0.0)
                continue
            others = np.zeros_like(mask)
            for j, other in enumerate(true):
                if j != i and other is not None:
                    others |= other
            found = FAULTS[self.fault](mask, share, image.boxes[i], others, direction)
            overlap = (found & mask).sum() / max((found | mask).sum(), 1)
            masks.append(encode(found))
            scores.append(overlap if self.scores == "informed" else guess)
        return replace(image, teacher_masks=masks, teacher_scores=np.array(scores, np.float32))


class TaughtRois:
    """The RoIs of a cache with the masks of a teacher, which are kept in memory."""

    def __init__(self, cache: RoiCache, images: Sequence[AnnotatedImage], side: int):
        self._cache, self._images, self._side = cache, images, side

    def __len__(self) -> int:
        return len(self._cache)

    def rois(self, image: int, *, mirrored: bool) -> Rois:
        """The RoIs of an image."""
        masks, scores = self._taught[image][mirrored]
        rois = self._cache.rois(image, mirrored=mirrored)
        return replace(rois, teacher_masks={self._side: masks}, teacher_scores=scores)

    @cached_property
    def _taught(self) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
        return [
            [self._of_image(number, image, mirrored) for mirrored in (False, True)]
            for number, image in enumerate(tqdm(self._images, "teacher", leave=False, mininterval=10))
        ]

    def _of_image(self, number: int, image: AnnotatedImage, mirrored: bool):
        rois = self._cache.rois(number, mirrored=mirrored)
        boxes = torch.from_numpy(image.boxes).clone()
        if mirrored:
            boxes[:, [0, 2]] = image.width - boxes[:, [2, 0]]
        instances = (rois.true_boxes[:, None] - boxes).abs().sum(2).argmin(1).tolist()
        masks = torch.zeros(len(rois), self._side, self._side, dtype=torch.uint8)
        for row, instance in enumerate(instances):
            if image.teacher_masks[instance] is not None:
                plane = torch.from_numpy(mask_util.decode(image.teacher_masks[instance]))
                plane = (plane.flip(-1) if mirrored else plane)[None]
                masks[row] = (average_to_cells(plane, rois.boxes[row], self._side)[0] * 255).round()
        return masks, torch.from_numpy(image.teacher_scores)[instances]


def _arguments() -> argparse.Namespace:
    parser = recipe_argument_parser(__doc__, output="output/teachers")
    parser.add_argument("--hide", required=True, metavar="CLASS,CLASS,...", help="B, or a file of A")
    parser.add_argument("--recipe", choices=[n.removesuffix("_with_teacher") for n in WITH_TEACHER])
    parser.set_defaults(recipe="maskx_box_supervised")
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--scores", nargs="+", choices=SCORES, default=list(SCORES))
    parser.add_argument("--min-scores", nargs="+", type=float, default=[0.0], help="of masks that are used")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    return parser.parse_args()


def _table(results: dict[str, dict]) -> str:
    lines = []
    for name, runs in results.items():
        plain = results[BOXES_ALONE]
        gains = [runs[seed]["AP"] - plain[seed]["AP"] for seed in runs if seed in plain]
        columns = [
            [100 * run[key] for run in runs.values() if key in run] for key in ("teacher_iou", "iou")
        ]
        lines.append(
            [
                name,
                len(runs),
                *(mean_cell(values) if values else "-" for values in columns),
                mean_cell([run["AP"] for run in runs.values()]),
                "-" if name == BOXES_ALONE else mean_cell(gains, sign="+"),
            ]
        )
    headers = [
        "teacher",
        "seeds",
        "its IoU on B",
        "IoU of the student",
        "AP of the student",
        "to boxes alone",
    ]
    return tabulate(lines, headers, "github", disable_numparse=True)


def main() -> None:
    args = _arguments()
    detector = load_frozen_detector(args.weights, args.config_file).to(args.device)
    train, val = (read_annotated_images(*part, detector.class_names) for part in (args.train, args.val))
    hidden = hidden_classes(args.hide, detector.class_names, option="--hide")
    plain = replace(RECIPES[args.recipe], channels=args.channels)
    student = replace(WITH_TEACHER[f"{args.recipe}_with_teacher"], channels=args.channels)
    side = roi_side(plain)
    bar = {"file": sys.stderr, "leave": False, "mininterval": 10}
    cache = fill_cache(
        args.output / "cache",
        detector,
        train.images,
        sides=[side],
        progress=lambda files: tqdm(files, "RoI features", **bar),
    )
    seen = see_measured(
        detector, val.images, sides=[side], progress=lambda images: tqdm(images, "detections", **bar)
    )
    path = args.output / "results.json"
    results = load_json(path, what="results") if path.is_file() else {}
    rows = {BOXES_ALONE: None} | {
        f"{fault}, {scores} scores" + (f" from {least}" if least else ""): (fault, scores, least)
        for fault in args.faults
        for scores in args.scores
        for least in args.min_scores
    }
    for seed in args.seeds:
        for name, kind in rows.items():
            if str(seed) in results.setdefault(name, {}):
                continue
            recipe, rois, found = plain, cache, {}
            if kind is not None:
                fault, scores, least = kind
                teacher = Teacher(fault, scores, seed)
                taught = [teacher.taught(image, i) for i, image in enumerate(train.images)]
                recipe = replace(student, teacher={"weight": 1.0, "min_score": least})
                rois = TaughtRois(cache, taught, 2 * side)
                of_val = [
                    replace(measured, image=teacher.taught(measured.image, len(taught) + i))
                    for i, measured in enumerate(seen)
                ]
                found["teacher_iou"] = masks_of_teacher(of_val).mean_iou(hidden)
            head = train_mask_head(
                detector,
                rois,
                recipe,
                hidden=hidden,
                schedule=Schedule(steps=args.steps),
                seed=seed,
                device=args.device,
            )
            outcome = measure(detector, head, seen, val, hidden=hidden, device=args.device)
            found |= {"AP": outcome.mean_ap(hidden), "iou": outcome.mean_iou(hidden)}
            results[name][str(seed)] = found
            write_json(path, results)
            print(f"{name:26} seed {seed}: {found}", flush=True)
    print(f"\n{_table(results)}")


if __name__ == "__main__":
    main()
