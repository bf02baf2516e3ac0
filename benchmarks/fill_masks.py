#!/usr/bin/env python3
"""
How good masks are that `maskx fill-masks` makes: on the training images of a demo, whose classes of B have
boxes only.

    maskx demo --output output/demo
    python benchmarks/fill_masks.py --demo output/demo

Prints for models of the demo the mean IoU of filled masks with the true ones, and how far mask_score orders
them as their IoU does (Spearman's rank correlation). Of a demo on torchvision, then trains a class-specific
mask head, that of Mask R-CNN, on the filled file and on the true masks of all classes, and prints mask AP.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from statistics import fmean

import numpy as np
from tqdm import tqdm
from unseen_classes import RECIPES, Frozen, train

from maskx_d2.backends.load import load_detector
from maskx_d2.data.files import file_digest
from maskx_d2.data.rle import overlap
from maskx_d2.demo.generated_dataset import GeneratedDataset
from maskx_d2.demo.run import FULL
from maskx_d2.inference.detector import Detector
from maskx_d2.inference.fill_masks import fill_masks
from maskx_d2.inference.masks_in_boxes import find_masks

ROWS = {
    "class_agnostic": "class-agnostic",
    "maskx": "Mask^X",
    "maskx_box_supervised": "Mask^X, box-supervised",
    "oracle": "oracle",
}


def read_detector(folder: Path) -> tuple[Detector, Path]:
    """The model of a run of either backend, and its weights."""
    if (weights := folder / "model_final.ckpt").is_file():
        return load_detector(weights), weights
    weights = folder / "model_final.pth"
    return load_detector(weights, folder / "config.yaml"), weights


def quality(filled: Path, truth: Path) -> tuple[float, float, int]:
    """Mean IoU of filled masks, rank correlation of their scores with it, and their number."""
    true_masks = {a["id"]: a["segmentation"] for a in json.loads(truth.read_text())["annotations"]}
    new = [a for a in json.loads(filled.read_text())["annotations"] if "mask_score" in a]
    overlaps = [overlap(a["segmentation"], true_masks[a["id"]]) for a in new]
    ranks = [np.argsort(np.argsort(values)) for values in (overlaps, [a["mask_score"] for a in new])]
    return fmean(overlaps), float(np.corrcoef(ranks)[0, 1]), len(new)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("output/demo"), metavar="DIR")
    parser.add_argument("--output", type=Path, default=Path("output/fill_masks"), metavar="DIR")
    parser.add_argument("--iterations", type=int, default=FULL.stage2_iterations, help="of the mask heads")
    parser.add_argument("--seed", type=int, default=0, help="of their training")
    args = parser.parse_args()
    dataset = GeneratedDataset(args.demo / "dataset")
    for name, title in ROWS.items():
        detector, weights = read_detector(args.demo / name)
        fill_masks(
            detector,
            dataset.train_json,
            dataset.train_images,
            args.output / f"{name}.json",
            model=file_digest(weights),
            find_masks=partial(find_masks, progress=partial(tqdm, desc=title, leave=False)),
        )
        overlap, correlation, number = quality(args.output / f"{name}.json", dataset.all_masks_json)
        print(f"{title:24} {number} masks, mean IoU {overlap:.3f}, rank correlation {correlation:.2f}")
    stage_1 = args.demo / "stage1" / "model_final.ckpt"
    if not stage_1.is_file():
        return
    recipe = RECIPES["class_specific"]
    files = {f"masks of B by {ROWS[name]}": args.output / f"{name}.json" for name in ROWS}
    for title, masks in {**files, "true masks": dataset.all_masks_json}.items():
        frozen = Frozen(dataset, stage_1, seed=args.seed, sides=(recipe.roi_side,), masks=masks)
        heads = train(recipe, frozen, iterations=args.iterations, seed=args.seed, teacher=None)
        ap = frozen.average_precision(heads, recipe.roi_side)
        print(f"class-specific head, {title:38} mask AP on A {ap['A']:.1f}, on B {ap['B']:.1f}")


if __name__ == "__main__":
    main()
