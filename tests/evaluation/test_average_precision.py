import contextlib
import copy
import io
import math

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskx_d2.evaluation.average_precision import (
    average_precision,
    class_groups,
    class_precisions,
    frequency_thirds,
)

from . import synthetic

GROUP_A = [1, 4]  # on the class axis: categories 3 and 10
IDS = {g: [synthetic.CATEGORY_IDS[i] for i in c] for g, c in class_groups(GROUP_A, 5).items()}


def ap_by_group(content, results, iou_type):
    precision = class_precisions(index(content), results, iou_type)
    return average_precision(precision, class_groups(GROUP_A, 5))


def assert_equals_filtered_json(content, results):
    for iou_type in ("bbox", "segm"):
        found = ap_by_group(content, results, iou_type)
        for group, ids in IDS.items():
            kept = [r for r in results if r["category_id"] in ids]
            expected = synthetic.pycocotools_metrics(synthetic.only(content, ids), kept, iou_type)
            assert found[group] == pytest.approx(expected, abs=1e-9, nan_ok=True), (iou_type, group)
    return found


def index(content):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = content
        truth.createIndex()
    return truth


def with_ties():
    """Crowds, images without objects, classes without, and many detections of the same score."""
    content = synthetic.ground_truth(images=20, categories=(2, 3, 9, 10))
    content["images"] += [{"id": i, "file_name": f"{i}.png", "width": 160, "height": 160} for i in (0, 90)]
    results = synthetic.detections(content)
    for result in results:
        result["score"] = round(result["score"], 1)
    return content, [*results, *({**r, "image_id": 90} for r in results[::3])]


def pycocotools_precision(content, results, task, **parameters):
    """Of one COCOeval of all classes and images."""
    content, results = copy.deepcopy((content, results))
    with contextlib.redirect_stdout(io.StringIO()):
        for result in results:
            result.pop("bbox" if task == "segm" else "segmentation")
        truth = index(content)
        evaluation = COCOeval(truth, truth.loadRes(results), task)
        vars(evaluation.params).update(parameters)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][..., -1:]


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_precision_of_each_class_is_that_of_pycocotools(task):
    content, results = with_ties()
    expected = pycocotools_precision(content, results, task)
    assert 0 < expected[expected > -1].mean() < 1 and (expected[:, :, 2] == -1).all()
    np.testing.assert_allclose(
        class_precisions(index(content), results, task), expected, rtol=0, atol=1e-12
    )
    some, limit = [0, 3, 4, 7, 90], 2
    expected = pycocotools_precision(content, results, task, imgIds=some, maxDets=[1, limit])
    found = class_precisions(index(content), results, task, image_ids=some, max_detections=limit)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_only_pairs_of_image_and_class_that_occur_are_evaluated():
    content, results = with_ties()
    content["categories"] += [{"id": i, "name": f"class {i}"} for i in range(100, 3000)]
    looked_at = []

    class Counting(COCOeval):
        def evaluate(self):
            looked_at.extend((image, c) for image in self.params.imgIds for c in self.params.catIds)
            super().evaluate()

    class_precisions(index(content), results, "bbox", evaluation_class=Counting)
    with_objects = {a["category_id"] for a in content["annotations"]}
    pairs = {(r["image_id"], r["category_id"]) for r in [*content["annotations"], *results]}
    assert sorted(looked_at) == sorted(pair for pair in pairs if pair[1] in with_objects)


def test_a_detection_of_an_image_that_there_is_none_of_is_named():
    content = synthetic.ground_truth()
    results = [{**synthetic.detections(content)[0], "image_id": 77}]
    with pytest.raises(ValueError, match="a detection has image_id 77, which no image of the ground truth"):
        class_precisions(index(content), results, "bbox")


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
    precision = class_precisions(index(content), synthetic.detections(content), "bbox")
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
