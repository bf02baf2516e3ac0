"""A small COCO ground truth with gaps in its category ids, and detections that are partly right."""

import numpy as np
import pycocotools.mask as mask_util

CATEGORY_IDS = (2, 3, 5, 9, 10)


def disk(x, y, radius, side=160):
    v, u = np.mgrid[:side, :side]
    return ((u - x) ** 2 + (v - y) ** 2 < radius**2).astype(np.uint8)


def rle(mask):
    encoded = mask_util.encode(np.asfortranarray(mask))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def ground_truth(seed=0, images=12, categories=CATEGORY_IDS):
    """Objects of COCO's three sizes; ``categories`` are those that occur."""
    rng = np.random.default_rng(seed)
    annotations = []
    for image_id in range(1, images + 1):
        for _ in range(rng.integers(1, 5)):
            mask = disk(*rng.uniform(30, 130, 2), rng.choice([9, 25, 65]))
            encoded = rle(mask)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(rng.choice(categories)),
                    "bbox": mask_util.toBbox(encoded).tolist(),
                    "area": int(mask.sum()),
                    "iscrowd": int(rng.random() < 0.1),
                    "segmentation": encoded,
                }
            )
    return {
        "info": {},
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": 160, "height": 160} for i in range(1, images + 1)
        ],
        "annotations": annotations,
        "categories": [{"id": c, "name": f"class {c}"} for c in CATEGORY_IDS],
    }


def detections(content, seed=1):
    """Moved and re-scored copies of the ground truth, some of another class, and some inventions."""
    rng = np.random.default_rng(seed)
    results = []
    for annotation in content["annotations"] * 3:
        x, y, w, h = annotation["bbox"]
        mask = disk(
            x + w / 2 + rng.normal(0, 4), y + h / 2 + rng.normal(0, 4), w / 2 * rng.uniform(0.8, 1.2)
        )
        category = annotation["category_id"] if rng.random() < 0.8 else int(rng.choice(CATEGORY_IDS))
        if mask.any():
            encoded = rle(mask)
            results.append(
                {
                    "image_id": annotation["image_id"],
                    "category_id": category,
                    "bbox": mask_util.toBbox(encoded).tolist(),
                    "score": float(rng.random()),
                    "segmentation": encoded,
                }
            )
    return results


def only(content, category_ids):
    """A JSON that has been filtered to some categories."""
    return {
        **content,
        "annotations": [a for a in content["annotations"] if a["category_id"] in category_ids],
        "categories": [c for c in content["categories"] if c["id"] in category_ids],
    }


def pycocotools_metrics(content, results, iou_type):
    """The six numbers that COCOeval.summarize() gives, in per cent; NaN where it says -1."""
    import contextlib
    import copy
    import io

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(content)
        truth.createIndex()
        results = copy.deepcopy(results)
        if iou_type == "segm":
            for result in results:
                del result["bbox"]
        if not results:
            found = COCO()
            found.dataset = {**content, "annotations": []}
            found.createIndex()
        else:
            found = truth.loadRes(results)
        evaluation = COCOeval(truth, found, iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    return {
        n: float("nan") if value == -1 else value * 100
        for n, value in zip(names, evaluation.stats, strict=False)
    }
