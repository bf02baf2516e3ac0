"""AP over groups of classes, computed from pycocotools' precision of each class."""

import contextlib
import io
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskx_d2.data.errors import InputError
from maskx_d2.data.pycocotools_coco import ignored_without_mask, index_coco

DETECTIONS_PER_CLASS = 100
"""COCO's limit on detections of a class in an image, unless a model finds more objects in an image."""

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
    ``frequent``, ``common`` and ``rare``: class indices in three parts of equal size, by the number of
    training instances of each class.
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

    The mean over a group's part of the class axis is what COCOeval returns for a JSON that has been
    filtered to these classes, because it matches and ranks each class separately.

    Args:
        precision: the result of :func:`class_precisions`, or ``COCOeval.eval["precision"]``.
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


def class_precisions(
    ground_truth: COCO,
    results: Sequence[Mapping],
    iou_type: str,
    *,
    image_ids: Collection[int] | None = None,
    max_detections: int = DETECTIONS_PER_CLASS,
    evaluation_class: type[COCOeval] = COCOeval,
) -> np.ndarray:
    """
    What COCOeval finds, class by class, each on the images that have an object or a detection of it. Time
    and memory grow with these pairs of image and class, while a single COCOeval goes through every image
    for every class.

    Args:
        ground_truth: the annotations. For ``"segm"``, those without a mask are ignored regions.
        results: detections in COCO's results format; may be empty.
        iou_type: ``"bbox"`` or ``"segm"``.
        image_ids: the images to evaluate on; None for all.
        max_detections: maximum number of detections of a class in an image, best first.
        evaluation_class: pycocotools' COCOeval, or a faster equivalent.

    Returns:
        (10 IoU thresholds, 101 recalls, K classes, 4 areas, 1), the ``"precision"`` of COCOeval with
        ``max_detections`` as its last limit; -1 where a class has no ground truth. The class axis is
        ``sorted(ground_truth.getCatIds())``.

    Raises:
        ValueError: a detection is of an image that does not exist.
    """
    objects = _by_class(ground_truth.dataset["annotations"], image_ids)
    found = _by_class(results, image_ids)
    unknown = next((r["image_id"] for r in results if r["image_id"] not in ground_truth.imgs), None)
    if unknown is not None:
        raise InputError(f"a detection has image_id {unknown}, which no image of the ground truth has")
    category_ids = sorted(ground_truth.cats)
    options = COCOeval(iouType=iou_type).params
    thresholds, areas = (len(options.iouThrs), len(options.recThrs)), len(options.areaRng)
    precision = np.full((*thresholds, len(category_ids), areas, 1), -1.0)
    for index, category_id in enumerate(category_ids):
        of_class = objects[category_id]
        if iou_type == "segm":
            of_class = [ignored_without_mask(a, ground_truth.imgs[a["image_id"]]) for a in of_class]
        if all(annotation["iscrowd"] for annotation in of_class):
            continue
        detections = found[category_id]
        images = sorted({record["image_id"] for record in (*of_class, *detections)})
        truth_of_class = index_coco(
            {
                "images": [ground_truth.imgs[image_id] for image_id in images],
                # Copied, because COCOeval writes into them.
                "annotations": [{**annotation} for annotation in of_class],
                "categories": [ground_truth.cats[category_id]],
            }
        )
        evaluation = _evaluate(truth_of_class, detections, iou_type, max_detections, evaluation_class)
        precision[:, :, index] = evaluation.eval["precision"][:, :, 0]
    return precision


def crowding(ground_truth: COCO, max_detections: int) -> str | None:
    """
    A warning if images have more objects than detections of them count.

    Args:
        ground_truth, max_detections: see :func:`class_precisions`.
    """
    counts = Counter(a["image_id"] for a in ground_truth.dataset["annotations"] if not a["iscrowd"])
    crowded = sum(count > max_detections for count in counts.values())
    if not crowded:
        return None
    return (
        f"{crowded} of {len(ground_truth.imgs)} images have more than {max_detections} objects, but only "
        f"the best {max_detections} detections of a class in an image count"
    )


def _by_class(records: Sequence[Mapping], image_ids: Collection[int] | None) -> dict[int, list[Mapping]]:
    of_class = defaultdict(list)
    evaluated = None if image_ids is None else set(image_ids)
    for record in records:
        if evaluated is None or record["image_id"] in evaluated:
            of_class[record["category_id"]].append(record)
    return of_class


def _evaluate(
    ground_truth: COCO,
    results: Sequence[Mapping],
    iou_type: str,
    max_detections: int,
    evaluation_class: type[COCOeval],
) -> COCOeval:
    """Evaluate and accumulate, without printing."""
    # Otherwise the areas of masks would be taken from their boxes.
    left_out = "bbox" if iou_type == "segm" else "segmentation"
    kept = [{key: value for key, value in result.items() if key != left_out} for result in results]
    with contextlib.redirect_stdout(io.StringIO()):
        # loadRes() takes the kind of the results from the first one.
        none = index_coco({**ground_truth.dataset, "annotations": []})
        detections = ground_truth.loadRes(kept) if kept else none
        evaluation = evaluation_class(ground_truth, detections, iou_type)
        evaluation.params.maxDets = [max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation
