#!/usr/bin/env python3
"""
Evaluation with 3,001 classes against 80, on the same detections: time, and peak memory of a process each.

Generated ground truth and detections whose classes are as unevenly frequent as Visual Genome's; those of 80
classes are the same, of class modulo 80. The peer is one COCOeval of all images and the 80 classes, as
pycocotools and Detectron2 have it; what both find for the 80 classes is compared.
"""

import argparse
import contextlib
import io
import json
import resource
import subprocess
import sys
import time
from importlib.util import find_spec

import numpy as np
import pycocotools.mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskx_d2.data.pycocotools_coco import index_coco
from maskx_d2.evaluation.average_precision import class_precisions

MANY = 3001
SIDE = 160
OBJECTS = 35  # in an image, as in Visual Genome


def disks(rng: np.random.Generator, count: int) -> list[dict]:
    """Masks of all of COCO's sizes, with their boxes."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    result = []
    for x, y, radius in zip(*rng.uniform(20, 140, (2, count)), rng.uniform(4, 60, count), strict=True):
        rle = mask_util.encode(np.asfortranarray((columns - x) ** 2 + (rows - y) ** 2 < radius**2))
        box, area = mask_util.toBbox(rle).tolist(), int(mask_util.area(rle))
        result.append(
            {"bbox": box, "area": area, "segmentation": {**rle, "counts": rle["counts"].decode()}}
        )
    return result


def generate(num_images: int, num_detections: int, num_classes: int, task: str) -> tuple[COCO, list[dict]]:
    """Seven in ten detections have the class and the mask of an object, and a box that is near to its."""
    rng = np.random.default_rng(0)
    masks = disks(rng, 500)
    frequency = 1 / (10 + np.arange(MANY))
    frequency /= frequency.sum()
    annotations, results = [], []
    for image_id in range(1, num_images + 1):
        classes, shapes = rng.choice(MANY, OBJECTS, p=frequency), rng.integers(0, 500, OBJECTS)
        for index, shape in zip(classes.tolist(), shapes.tolist(), strict=True):
            record = {"id": len(annotations) + 1, "image_id": image_id, "iscrowd": 0}
            annotations.append({**record, "category_id": index % num_classes + 1, **masks[shape]})
        chosen, right = rng.integers(0, OBJECTS, num_detections), rng.random(num_detections) < 0.7
        found = np.where(right, classes[chosen], rng.choice(MANY, num_detections, p=frequency)).tolist()
        shapes = np.where(right, shapes[chosen], rng.integers(0, 500, num_detections)).tolist()
        shifts, scores = rng.normal(0, 3, (num_detections, 4)), rng.random(num_detections).tolist()
        for index, shape, shift, score in zip(found, shapes, shifts, scores, strict=True):
            result = {"image_id": image_id, "category_id": index % num_classes + 1, "score": score}
            result["bbox"] = np.abs(masks[shape]["bbox"] + shift).tolist()
            if task == "segm":
                result["segmentation"] = masks[shape]["segmentation"]
            results.append(result)
    images = [
        {"id": i + 1, "file_name": f"{i}.png", "width": SIDE, "height": SIDE} for i in range(num_images)
    ]
    categories = [{"id": i + 1, "name": f"class {i}"} for i in range(num_classes)]
    return index_coco({"images": images, "annotations": annotations, "categories": categories}), results


def all_at_once(
    truth: COCO, results: list[dict], task: str, evaluation_class: type[COCOeval]
) -> np.ndarray:
    kept = [{k: v for k, v in r.items() if task == "bbox" or k != "bbox"} for r in results]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = evaluation_class(truth, truth.loadRes(kept), task)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][..., -1:]


def measure(args: argparse.Namespace) -> dict:
    evaluation_class = COCOeval
    if args.by == "Detectron2":
        from detectron2.evaluation.fast_eval_api import COCOeval_opt as evaluation_class
    truth, results = generate(args.images, args.detections, args.classes, args.task)
    start = time.perf_counter()
    if args.all_at_once:
        precision = all_at_once(truth, results, args.task, evaluation_class)
    else:
        precision = class_precisions(truth, results, args.task, evaluation_class=evaluation_class)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"seconds": seconds, "peak": peak, "ap": 100 * precision[precision > -1].mean()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=100, help="in an image")
    parser.add_argument("--task", choices=("bbox", "segm"))
    parser.add_argument("--by", choices=("pycocotools", "Detectron2"))
    parser.add_argument("--classes", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--all-at-once", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.classes:
        print(json.dumps(measure(args)))
        return
    by = ["pycocotools"] + ["Detectron2"] * (find_spec("detectron2") is not None)
    print(f"{args.images} images, each of {OBJECTS} objects and {args.detections} detections")
    for task in [args.task] if args.task else ("bbox", "segm"):
        for library in [args.by] if args.by else by:
            found = {}
            for title, classes, more in (
                ("all at once, K = 80", 80, ["--all-at-once"]),
                ("class by class, K = 80", 80, []),
                (f"class by class, K = {MANY}", MANY, []),
            ):
                command = [sys.executable, __file__, "--classes", str(classes), "--task", task, *more]
                command += ["--images", str(args.images), "--detections", str(args.detections)]
                done = subprocess.run(
                    [*command, "--by", library], check=True, capture_output=True, text=True
                )
                found[title] = json.loads(done.stdout.splitlines()[-1])
            first, second, _ = found.values()
            assert abs(first["ap"] - second["ap"]) < 1e-10, found
            for title, row in found.items():
                ratio = row["seconds"] / first["seconds"]
                print(
                    f"{task} by {library:11}  {title:24} {row['seconds']:6.1f} s, {ratio:5.2f} x; "
                    f"peak {row['peak']:5.2f} GiB; AP {row['ap']:.3f}"
                )


if __name__ == "__main__":
    main()
