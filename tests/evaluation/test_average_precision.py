import contextlib
import io
import math

import pytest
from pycocotools.coco import COCO

from maskx_d2.evaluation.average_precision import (
    average_precision,
    class_groups,
    evaluate_coco,
    frequency_thirds,
)

from . import synthetic

GROUP_A = [1, 4]  # on the class axis: categories 3 and 10
IDS = {g: [synthetic.CATEGORY_IDS[i] for i in c] for g, c in class_groups(GROUP_A, 5).items()}


def ap_by_group(content, results, iou_type):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = content
        truth.createIndex()
    evaluation = evaluate_coco(truth, results, iou_type)
    return average_precision(evaluation.eval["precision"], class_groups(GROUP_A, 5))


def assert_equals_filtered_json(content, results):
    for iou_type in ("bbox", "segm"):
        found = ap_by_group(content, results, iou_type)
        for group, ids in IDS.items():
            kept = [r for r in results if r["category_id"] in ids]
            expected = synthetic.pycocotools_metrics(synthetic.only(content, ids), kept, iou_type)
            assert found[group] == pytest.approx(expected, abs=1e-9, nan_ok=True), (iou_type, group)
    return found


def test_groups_are_the_two_sides_and_all():
    assert class_groups([4, 1, 1], 5) == {"A": [1, 4], "B": [0, 2, 3], "all": [0, 1, 2, 3, 4]}


def test_thirds_are_by_frequency_and_ties_by_index():
    counts = [5, 100, 5, 0, 7, 5, 90, 1]
    assert frequency_thirds(counts) == {"frequent": [1, 4, 6], "common": [0, 2, 5], "rare": [3, 7]}
    assert frequency_thirds([3]) == {"frequent": [0], "common": [], "rare": []}


def test_equals_pycocotools_on_json_files_filtered_to_each_side():
    content = synthetic.ground_truth()
    found = assert_equals_filtered_json(content, synthetic.detections(content))
    assert 5 < found["A"]["AP"] < 95 and found["A"]["AP"] != found["B"]["AP"]
    assert not any(math.isnan(v) for metrics in found.values() for v in metrics.values())


@pytest.mark.parametrize("absent", ["A", "B"])
def test_a_side_without_an_instance_has_no_ap(absent):
    present = [c for c in synthetic.CATEGORY_IDS if c not in IDS[absent]]
    content = synthetic.ground_truth(categories=present)
    found = assert_equals_filtered_json(content, synthetic.detections(content))
    assert all(math.isnan(value) for value in found[absent].values())
    assert found["all"] == found["A" if absent == "B" else "B"]


def test_without_detections_ap_is_zero_where_there_is_ground_truth():
    content = synthetic.ground_truth()
    found = assert_equals_filtered_json(content, [])
    assert found["A"]["AP"] == found["B"]["AP"] == found["all"]["AP"] == 0
    nothing = assert_equals_filtered_json({**content, "annotations": []}, [])
    assert math.isnan(nothing["all"]["AP"])


def test_an_empty_group_has_no_ap():
    content = synthetic.ground_truth()
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = content
        truth.createIndex()
    precision = evaluate_coco(truth, synthetic.detections(content), "bbox").eval["precision"]
    found = average_precision(precision, class_groups(range(5), 5))
    assert all(math.isnan(value) for value in found["B"].values())
    assert found["A"] == found["all"]


# ---- Ground truth of which some has no mask ----


def without_masks(content, category_id, every=1):
    """The ground truth without the segmentations of a category, all or every so many."""
    of_category = [a["id"] for a in content["annotations"] if a["category_id"] == category_id][::every]
    annotations = [
        {k: v for k, v in a.items() if k != "segmentation"} if a["id"] in of_category else a
        for a in content["annotations"]
    ]
    return {**content, "annotations": annotations}


def perfect(content):
    return [
        {key: a[key] for key in ("image_id", "category_id", "bbox", "segmentation")} | {"score": 0.9}
        for a in content["annotations"]
        if not a["iscrowd"]
    ]


def test_what_is_detected_on_an_instance_without_mask_is_neither_right_nor_wrong():
    content = synthetic.ground_truth()
    results = perfect(content)
    partial = without_masks(content, 3, every=2)
    assert ap_by_group(content, results, "segm")["all"]["AP"] == pytest.approx(100)
    assert ap_by_group(partial, results, "segm")["all"]["AP"] == pytest.approx(100)
    # Nothing on the others: those are missed, and no more than those.
    on_masks = [r for r in results if r["category_id"] != 3]
    assert ap_by_group(partial, on_masks, "segm")["A"]["AP"] == pytest.approx(50)


def test_a_class_without_any_mask_has_no_mask_ap_and_its_box_ap():
    content = synthetic.ground_truth()
    results = synthetic.detections(content)
    partial = without_masks(content, 3)
    others = [c for c in synthetic.CATEGORY_IDS if c != 3]
    expected = synthetic.pycocotools_metrics(
        synthetic.only(content, others), [r for r in results if r["category_id"] != 3], "segm"
    )
    assert ap_by_group(partial, results, "segm")["all"] == pytest.approx(expected, abs=1e-9)
    assert ap_by_group(partial, results, "bbox") == ap_by_group(content, results, "bbox")
