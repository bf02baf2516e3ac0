import json
import math

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from detectron2.evaluation.fast_eval_api import COCOeval_opt
from detectron2.structures import Boxes, Instances

from maskx_d2.backends.detectron2 import Trainer, command_line
from maskx_d2.backends.detectron2.evaluator import PartiallySupervisedEvaluator
from maskx_d2.data.pycocotools_coco import read_coco
from maskx_d2.evaluation.average_precision import average_precision, class_groups, class_precisions

from ...evaluation import synthetic
from ...evaluation.test_average_precision import index, pycocotools_precision, with_ties
from . import tiny

GROUP_A = [1, 4]
IDS = {
    "A": [synthetic.CATEGORY_IDS[i] for i in GROUP_A],
    "B": [c for i, c in enumerate(synthetic.CATEGORY_IDS) if i not in GROUP_A],
    "all": list(synthetic.CATEGORY_IDS),
}


OWN_INDEX = {c: i for i, c in enumerate(synthetic.CATEGORY_IDS)}


def evaluate(content, results, folder, *, class_index=OWN_INDEX, metadata=None, **kwargs):
    """
    Run the evaluator on model outputs that say what ``results`` say, by a model that has each category at
    an index of its own.
    """
    folder.mkdir(exist_ok=True)
    name = f"synthetic_{folder.name}"
    (folder / "truth.json").write_text(json.dumps(content))
    if metadata is None:
        register_coco_instances(name, {}, str(folder / "truth.json"), str(folder))
        DatasetCatalog.get(name)
    else:
        DatasetCatalog.register(name, list)
        MetadataCatalog.get(name).set(json_file=str(folder / "truth.json"), **metadata)
    evaluator = PartiallySupervisedEvaluator(
        name,
        output_dir=str(folder / "inference"),
        distributed=False,
        **{"classes_with_masks": GROUP_A, **kwargs},
    )
    evaluator.reset()
    for image in content["images"]:
        found = [r for r in results if r["image_id"] == image["id"]]
        instances = Instances((image["height"], image["width"]))
        boxes = torch.tensor([r["bbox"] for r in found], dtype=torch.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        instances.pred_boxes = Boxes(boxes)
        instances.scores = torch.tensor([r["score"] for r in found], dtype=torch.float64)
        indices = [class_index[r["category_id"]] for r in found]
        instances.pred_classes = torch.tensor(indices, dtype=torch.int64)
        masks = [mask_util.decode(r["segmentation"]) for r in found]
        instances.pred_masks = torch.from_numpy(np.array(masks).reshape(-1, 160, 160)).bool()
        evaluator.process([{"image_id": image["id"]}], [{"instances": instances}])
    out = evaluator.evaluate()
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
    return out, json.loads((folder / "inference" / "ap_by_group.json").read_text())


def boxes_as_processed(results):
    """Detectron2 keeps boxes in float32."""
    for result in results:
        x, y, w, h = (np.float32(v) for v in result["bbox"])
        result["bbox"] = [float(v) for v in (x, y, np.float32(x + w) - x, np.float32(y + h) - y)]
    return results


@pytest.mark.parametrize("use_fast_impl", [True, False])
def test_ap_on_each_side_equals_pycocotools_on_filtered_json_files(tmp_path, use_fast_impl):
    content = synthetic.ground_truth()
    results = boxes_as_processed(synthetic.detections(content))
    for result in results:
        result["score"] = float(np.float32(result["score"]))
    out, by_group = evaluate(content, results, tmp_path, use_fast_impl=use_fast_impl)
    for task in ("bbox", "segm"):
        for group, ids in IDS.items():
            kept = [r for r in results if r["category_id"] in ids]
            expected = synthetic.pycocotools_metrics(synthetic.only(content, ids), kept, task)
            assert by_group[task][group] == pytest.approx(expected, abs=1e-9)
            logged = out[task if group == "all" else f"{task}_{group}"]
            assert {metric: logged[metric] for metric in expected} == pytest.approx(expected, abs=1e-9)
    assert by_group["segm"]["A"]["AP"] > 5
    # What Detectron2 reports is still there.
    assert "AP-class 2" in out["segm"]


@pytest.mark.parametrize("absent", ["A", "B"])
def test_a_side_without_an_instance_has_no_ap(tmp_path, absent):
    present = [c for c in synthetic.CATEGORY_IDS if c not in IDS[absent]]
    content = synthetic.ground_truth(categories=present)
    out, by_group = evaluate(content, synthetic.detections(content), tmp_path)
    assert all(math.isnan(value) for value in out[f"segm_{absent}"].values())
    assert all(value is None for value in by_group["segm"][absent].values())
    assert by_group["segm"]["all"]["AP"] == out["segm_B" if absent == "A" else "segm_A"]["AP"] > 5


def test_an_annotation_of_id_0_is_matched_like_any_other(tmp_path):
    content = synthetic.ground_truth()
    results = boxes_as_processed(synthetic.detections(content))
    found = []
    for start in (1, 0):
        for number, annotation in enumerate(content["annotations"]):
            annotation["id"] = start + number
        found.append(evaluate(content, results, tmp_path / str(start))[1])
    assert found[0] == found[1]


def test_without_detections_ap_is_zero(tmp_path):
    out, by_group = evaluate(synthetic.ground_truth(), [], tmp_path, tasks=("bbox", "segm"))
    for task in ("bbox", "segm"):
        assert out[task]["AP"] == out[f"{task}_A"]["AP"] == out[f"{task}_B"]["AP"] == 0
        assert by_group[task]["B"]["AP75"] == 0


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_detectron2s_compiled_evaluation_finds_class_by_class_what_pycocotools_does(task):
    content, results = with_ties()
    expected = pycocotools_precision(content, results, task)
    found = class_precisions(index(content), results, task, evaluation_class=COCOeval_opt)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_where_all_classes_have_masks_there_are_no_two_sides(tmp_path):
    content = synthetic.ground_truth()
    out, by_group = evaluate(content, synthetic.detections(content), tmp_path, classes_with_masks=range(5))
    assert set(out) == {"bbox", "segm"}
    assert by_group["segm"]["A"] == by_group["segm"]["all"]
    assert by_group["segm"]["B"]["AP"] is None


def test_instances_without_a_mask_are_ignored_in_the_evaluation_of_masks(tmp_path):
    content = synthetic.ground_truth()
    results = boxes_as_processed(synthetic.detections(content))
    for annotation in content["annotations"]:
        if annotation["category_id"] == 3 or annotation["id"] % 5 == 0:
            del annotation["segmentation"]
    for annotation in content["annotations"][:4]:
        del annotation["area"], annotation["iscrowd"]
    _, by_group = evaluate(content, results, tmp_path)
    truth = read_coco(tmp_path / "truth.json")
    groups = class_groups(GROUP_A, len(synthetic.CATEGORY_IDS))
    for result in results:
        result["score"] = float(np.float32(result["score"]))
    for task in ("bbox", "segm"):
        expected = average_precision(class_precisions(truth, results, task), groups)
        for group, values in expected.items():
            assert by_group[task][group] == pytest.approx(values, abs=1e-9)
    assert by_group["segm"]["A"]["AP"] > 1 and by_group["bbox"] != by_group["segm"]


def test_where_no_instance_has_a_mask_boxes_alone_are_evaluated(tmp_path):
    content = synthetic.ground_truth()
    results = boxes_as_processed(synthetic.detections(content))
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    out, by_group = evaluate(content, results, tmp_path, tasks=("bbox", "segm"))
    assert set(by_group) == {"bbox"} and "segm" not in out
    assert by_group["bbox"]["A"]["AP"] > 5


def test_training_counts_give_ap_on_thirds_of_the_classes(tmp_path):
    content = synthetic.ground_truth()
    counts = {2: 7, 3: 100, 5: 8, 9: 2, 10: 50}
    for category in content["categories"]:
        category["instance_count"] = counts[category["id"]]
    results = boxes_as_processed(synthetic.detections(content))
    for result in results:
        result["score"] = float(np.float32(result["score"]))
    out, by_group = evaluate(content, results, tmp_path, classes_with_masks=range(5))
    thirds = {"frequent": [3, 10], "common": [2, 5], "rare": [9]}
    for task in ("bbox", "segm"):
        for third, ids in thirds.items():
            kept = [r for r in results if r["category_id"] in ids]
            expected = synthetic.pycocotools_metrics(synthetic.only(content, ids), kept, task)
            assert out[f"{task}_{third}"] == pytest.approx(expected, abs=1e-9, nan_ok=True)
            assert by_group[task][third]["AP"] == pytest.approx(expected["AP"], abs=1e-9)
    assert not {"bbox_A", "bbox_B"} & set(out)


def test_a_dataset_whose_classes_are_in_another_order_than_the_models(tmp_path):
    content = synthetic.ground_truth()
    results = boxes_as_processed(synthetic.detections(content))
    index = {2: 4, 3: 0, 5: 3, 9: 2, 10: 1}
    expected = evaluate(content, results, tmp_path / "own")
    metadata = {
        "thing_classes": ["class 3", "class 10", "class 9", "class 5", "class 2"],
        "thing_dataset_id_to_contiguous_id": index,
    }
    options = {"class_index": index, "metadata": metadata, "classes_with_masks": [0, 1]}
    assert evaluate(content, results, tmp_path / "other", **options) == expected


def test_on_a_dataset_that_labels_some_classes_detections_of_the_others_are_passed_over(tmp_path):
    """Its five classes are scattered among the model's seven."""
    content = synthetic.ground_truth()
    results = boxes_as_processed(synthetic.detections(content))
    index = {2: 4, 3: 0, 5: 6, 9: 2, 10: 1}
    expected = evaluate(content, results, tmp_path / "own")
    # Detections of the two classes that the dataset does not label.
    others = [{**r, "category_id": 90 + i % 2, "score": 0.99} for i, r in enumerate(results[::3])]
    found = evaluate(
        content,
        results + others,
        tmp_path / "among",
        class_index={**index, 90: 3, 91: 5},
        metadata={
            "thing_classes": [f"model class {i}" for i in range(7)],
            "thing_dataset_id_to_contiguous_id": index,
        },
        classes_with_masks=[0, 1, 3],  # categories 3 and 10, and one that is not labelled
    )
    assert found == expected
    written = [
        json.loads((tmp_path / name / "inference" / "coco_instances_results.json").read_text())
        for name in ("own", "among")
    ]
    assert written[0] == written[1]


def test_a_file_without_annotations_gives_the_results_of_detectron2s_evaluator(shapes_dataset, tmp_path):
    """As COCO's test-dev, whose results are for a server."""
    content = json.loads((shapes_dataset.root / "annotations" / "test.json").read_text())
    del content["annotations"]
    (tmp_path / "test-dev.json").write_text(json.dumps(content))
    entry = ["test_dev", str(tmp_path / "test-dev.json"), str(shapes_dataset.test_images)]
    options = ["MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0]
    cfg = tiny.data_config(
        shapes_dataset,
        tmp_path / "run",
        *options,
        "DATASETS.MASKX_REGISTER",
        [entry],
        "DATASETS.TEST",
        ("test_dev",),
    )
    try:
        model = tiny.build(cfg).eval()
        command_line.check_evaluation(cfg)
        assert Trainer.test(cfg, model) == {}
        inference_on_dataset(
            model,
            Trainer.build_test_loader(cfg, "test_dev"),
            COCOEvaluator("test_dev", tasks=("bbox", "segm"), output_dir=str(tmp_path / "stock")),
        )
    finally:
        tiny.forget("test_dev")
    name = "coco_instances_results.json"
    found, expected = (
        json.loads((folder / name).read_text())
        for folder in (tmp_path / "run" / "inference", tmp_path / "stock")
    )
    assert found == expected and len(found) > 0


def test_the_ids_of_two_classes_in_the_validation_file_may_be_each_others(tmp_path):
    content = synthetic.ground_truth()
    results = boxes_as_processed(synthetic.detections(content))
    names = [c["name"] for c in sorted(content["categories"], key=lambda c: c["id"])]
    _, expected = evaluate(content, results, tmp_path / "a", classes_with_masks=range(5))
    swapped = {
        synthetic.CATEGORY_IDS[0]: synthetic.CATEGORY_IDS[1],
        synthetic.CATEGORY_IDS[1]: synthetic.CATEGORY_IDS[0],
    }
    for category in content["categories"]:
        category["id"] = swapped.get(category["id"], category["id"])
    for annotation in content["annotations"]:
        annotation["category_id"] = swapped.get(annotation["category_id"], annotation["category_id"])
    _, found = evaluate(content, results, tmp_path / "b", classes_with_masks=range(5), model_classes=names)
    assert found == expected
    written = json.loads((tmp_path / "b" / "inference" / "coco_instances_results.json").read_text())
    of_file = {category["id"]: category["name"] for category in content["categories"]}
    of_model = dict(zip(synthetic.CATEGORY_IDS, names, strict=True))
    assert sorted((r["image_id"], of_file[r["category_id"]]) for r in written) == sorted(
        (r["image_id"], of_model[r["category_id"]]) for r in results
    )


def test_a_file_with_other_classes_than_the_model_is_refused(tmp_path):
    content = synthetic.ground_truth()
    names = [c["name"] for c in sorted(content["categories"], key=lambda c: c["id"])]
    with pytest.raises(ValueError, match=r"has other classes than the model: it lacks 'unicorn' and has"):
        evaluate(content, [], tmp_path / "a", model_classes=["unicorn", *names[1:]])


def test_more_than_100_objects_in_an_image_count_if_the_model_finds_as_many(tmp_path, caplog):
    annotations = []
    for i in range(150):
        x, y = 1.0 * (i % 15) * 10, 1.0 * (i // 15) * 10
        polygon = [x, y, x + 8, y, x + 8, y + 8, x, y + 8]
        annotations.append(
            {
                "id": i + 1,
                "image_id": 1,
                "category_id": 1,
                "bbox": [x, y, 8.0, 8.0],
                "segmentation": [polygon],
            }
        )
    content = {
        "images": [{"id": 1, "file_name": "1.png", "width": 160, "height": 160}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "a"}],
    }
    results = [
        {
            **{key: a[key] for key in ("image_id", "category_id", "bbox")},
            "score": 0.9,
            "segmentation": mask_util.merge(mask_util.frPyObjects(a["segmentation"], 160, 160)),
        }
        for a in annotations
    ]
    found = {}
    for limit in (100, 150):
        _, found[limit] = evaluate(
            content,
            results,
            tmp_path / str(limit),
            class_index={1: 0},
            classes_with_masks=[0],
            max_dets_per_image=limit,
        )
    assert found[150]["segm"]["all"]["AP"] == pytest.approx(100) == found[150]["bbox"]["all"]["AP"]
    assert found[100]["segm"]["all"]["AP"] < 70
    warnings = [r.getMessage() for r in caplog.records if "more than" in r.getMessage()]
    assert len(warnings) == 1 and warnings[0].startswith("1 of 1 images have more than 100 objects")
