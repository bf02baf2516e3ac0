"""``PartiallySupervisedEvaluator``: COCO evaluation on A (classes with masks), on B and on all."""

import copy
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from detectron2.data.catalog import Metadata
from detectron2.evaluation import COCOEvaluator
from detectron2.utils.file_io import PathManager
from pycocotools.cocoeval import COCOeval

from maskx_d2.data.coco_json import (
    class_names,
    complete_annotations,
    ignore_boxes_without_mask,
    instance_counts,
)
from maskx_d2.evaluation.average_precision import average_precision, evaluate_coco
from maskx_d2.evaluation.run_files import evaluation_of, write_evaluation
from maskx_d2.evaluation.tables import FREQUENCY_TITLES, group_table

_TASKS = ("bbox", "segm")


class PartiallySupervisedEvaluator(COCOEvaluator):
    """
    Detectron2's ``COCOEvaluator``, and for boxes and masks AP on A, on B and on all classes out of the
    same COCOeval. Beside what ``COCOEvaluator`` returns there are, unless all classes have masks,
    ``bbox_A``, ``bbox_B``, ``segm_A`` and ``segm_B``, and where the annotations say how many training
    instances each class has ``bbox_frequent``, ``bbox_common``, ``bbox_rare`` and the same of masks, on
    thirds of the classes; ``ap_by_group.json`` in the output folder has
    ``{"bbox"|"segm": {"A"|"B"|"all"|...: {metric: value}}}``, null where there is no ground truth.
    Instances without a mask are ignored in the evaluation of masks, which is left out if none has one.

    On a dataset that labels some of the model's classes, detections of the others are passed over.
    """

    def __init__(self, dataset_name: str, *, classes_with_masks: Sequence[int], **kwargs):
        """
        Args:
            dataset_name: a registered dataset.
            classes_with_masks: contiguous indices of A, among the model's classes.
            kwargs: see ``COCOEvaluator``.
        """
        super().__init__(dataset_name, **kwargs)
        complete_annotations(self._coco_api)
        self.classes_with_masks = classes_with_masks
        self._own_index: dict[int, int] | None = None
        self._go_by_own_classes()
        self._precisions: dict[str, np.ndarray] = {}

    def _go_by_own_classes(self) -> None:
        """Instead of those of the list that the model has, which may be more and in another order."""
        category_ids = sorted(self._coco_api.cats)
        model_index = self._metadata.get("thing_dataset_id_to_contiguous_id", {})
        if not all(category_id in model_index for category_id in category_ids):
            return
        own_index = {model_index[category_id]: i for i, category_id in enumerate(category_ids)}
        if list(own_index) == list(range(len(self._metadata.get("thing_classes", model_index)))):
            return
        self.classes_with_masks = sorted(own_index[i] for i in self.classes_with_masks if i in own_index)
        self._own_index = own_index
        self._metadata = Metadata(
            **{
                **self._metadata.as_dict(),
                "thing_classes": class_names(self._coco_api),
                "thing_dataset_id_to_contiguous_id": {c: i for i, c in enumerate(category_ids)},
            }
        )

    def reset(self) -> None:
        super().reset()
        self._precisions = {}

    def evaluate(self, img_ids=None) -> dict:
        results = super().evaluate(img_ids)
        if not self._precisions:
            return results
        image_root = self._metadata.get("image_root")
        evaluation = evaluation_of(
            self._precisions,
            annotations=Path(PathManager.get_local_path(self._metadata.json_file)),
            images=str(Path(image_root).resolve()) if image_root else None,
            class_names=class_names(self._coco_api),
            category_ids=sorted(self._coco_api.cats),
            with_masks=self.classes_with_masks,
            instance_counts=instance_counts(self._coco_api),
        )
        for task, by_group in evaluation.by_group.items():
            for group, values in by_group.items():
                if group in FREQUENCY_TITLES or (group != "all" and evaluation.has_two_sides):
                    results[f"{task}_{group}"] = values
        self._logger.info(
            "AP on A (classes with masks), on B (boxes only) and on all:\n%s",
            group_table(evaluation.by_group),
        )
        if self._output_dir:
            write_evaluation(Path(self._output_dir), evaluation)
        return results

    def _eval_predictions(self, predictions, img_ids=None) -> None:
        if self._own_index is not None:
            predictions = [
                {**of_image, "instances": self._of_own_classes(of_image["instances"])}
                for of_image in predictions
            ]
        ground_truth, given_tasks = self._coco_api, self._tasks
        for_masks = ignore_boxes_without_mask(ground_truth)
        if for_masks is ground_truth:
            super()._eval_predictions(predictions, img_ids)
            return
        results = [result for of_image in predictions for result in of_image["instances"]]
        tasks = given_tasks or self._tasks_from_predictions(results)
        if not any(a.get("segmentation") for a in ground_truth.dataset["annotations"]):
            self._logger.info("Masks are not evaluated: the ground truth has none.")
            tasks = [task for task in tasks if task != "segm"]
        try:
            for task in tasks:
                self._tasks = (task,)
                self._coco_api = for_masks if task == "segm" else ground_truth
                super()._eval_predictions(copy.deepcopy(predictions), img_ids)
        finally:
            self._coco_api, self._tasks = ground_truth, given_tasks

    def _of_own_classes(self, results: list[dict]) -> list[dict]:
        """Results whose ``category_id`` is an index of the model's classes, with those of the dataset."""
        return [
            {**result, "category_id": self._own_index[result["category_id"]]}
            for result in results
            if result["category_id"] in self._own_index
        ]

    def _derive_coco_results(
        self, coco_eval: COCOeval | None, iou_type: str, class_names: Sequence[str] | None = None
    ) -> dict[str, float]:
        results = super()._derive_coco_results(coco_eval, iou_type, class_names)
        if iou_type not in _TASKS:
            return results
        if coco_eval is None:
            # Detectron2 evaluates no empty list of detections. COCO does: its AP is 0, not undefined.
            coco_eval = evaluate_coco(self._coco_api, [], iou_type)
        precision = self._precisions[iou_type] = coco_eval.eval["precision"]
        every_class = {"all": range(precision.shape[2])}
        return OrderedDict(results, **average_precision(precision, every_class)["all"])
