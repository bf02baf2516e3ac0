"""AP over groups of classes, all from one COCOeval."""

import contextlib
import io
from collections.abc import Mapping, Sequence

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskx_d2.data.coco_json import ignore_boxes_without_mask, index_coco

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_AREAS = {"APs": 1, "APm": 2, "APl": 3}
_IOU_THRESHOLDS = {"AP50": 0, "AP75": 5}


def class_groups(with_masks: Sequence[int], num_classes: int) -> dict[str, list[int]]:
    """``A``, the classes with masks; ``B``, those with boxes only; and ``all``, as class indices."""
    group_a = sorted(set(with_masks))
    group_b = sorted(set(range(num_classes)) - set(group_a))
    return {"A": group_a, "B": group_b, "all": list(range(num_classes))}


def frequency_thirds(counts: Sequence[int]) -> dict[str, list[int]]:
    """
    ``frequent``, ``common`` and ``rare``: class indices in three parts of equal size, by how many training
    instances there are of each class.
    """
    order = np.argsort(-np.asarray(counts), kind="stable")
    thirds = np.array_split(order, 3)
    return {
        name: sorted(third.tolist())
        for name, third in zip(("frequent", "common", "rare"), thirds, strict=True)
    }


def average_precision(
    precision: np.ndarray, groups: Mapping[str, Sequence[int]]
) -> dict[str, dict[str, float]]:
    """
    COCO's AP metrics over groups of classes.

    The mean over a group's part of the class axis is what COCOeval gives on a JSON that has been
    filtered to these classes: it matches and ranks each class by itself.

    Args:
        precision: ``COCOeval.eval["precision"]``, (10 IoU thresholds, 101 recalls, K classes, 4 areas,
            max. detections), with -1 where a class has no ground truth.
        groups: group name -> indices on the class axis.

    Returns:
        ``{group: {"AP": ..., "AP50": ..., "AP75": ..., "APs": ..., "APm": ..., "APl": ...}}`` in per
        cent; NaN for a group without ground truth (of that size).
    """
    return {
        group: {metric: _mean_precision(precision, classes, metric) for metric in METRICS}
        for group, classes in groups.items()
    }


def _mean_precision(precision: np.ndarray, classes: Sequence[int], metric: str) -> float:
    thresholds = [_IOU_THRESHOLDS[metric]] if metric in _IOU_THRESHOLDS else slice(None)
    # The last limit on detections is the one that COCO's AP is defined by.
    values = precision[:, :, list(classes), _AREAS.get(metric, 0), -1][thresholds]
    values = values[values > -1]
    return float(values.mean() * 100) if values.size else float("nan")


def evaluate_coco(ground_truth: COCO, results: Sequence[Mapping], iou_type: str) -> COCOeval:
    """
    Run pycocotools' COCOeval, without its printing.

    Args:
        ground_truth: the annotations. For ``"segm"`` those without a mask are ignored regions.
        results: detections in COCO's results format; there may be none.
        iou_type: ``"bbox"`` or ``"segm"``.

    Returns:
        The evaluated and accumulated COCOeval; its class axis is ``sorted(ground_truth.getCatIds())``.
    """
    if iou_type == "segm":
        ground_truth = ignore_boxes_without_mask(ground_truth)
    with contextlib.redirect_stdout(io.StringIO()):
        if results:
            # Left in, boxes would give the masks their areas.
            kept = [{k: v for k, v in r.items() if iou_type == "bbox" or k != "bbox"} for r in results]
            detections = ground_truth.loadRes(kept)
        else:
            # loadRes() takes the kind of the results from the first one.
            detections = index_coco({**ground_truth.dataset, "annotations": []})
        evaluation = COCOeval(ground_truth, detections, iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation
