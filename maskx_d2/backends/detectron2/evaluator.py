"""``PartiallySupervisedEvaluator``: COCO evaluation on A (classes with masks), on B and on all."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.data.catalog import Metadata
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import COCOeval_opt
from detectron2.utils.file_io import PathManager
from pycocotools.cocoeval import COCOeval

from maskx_d2.backends.detectron2 import class_split
from maskx_d2.backends.detectron2.datasets import is_read_here
from maskx_d2.data.class_names import match_classes
from maskx_d2.data.coco_format import make_whole
from maskx_d2.data.pycocotools_coco import class_names, coco_of, instance_counts
from maskx_d2.evaluation.average_precision import average_precision, class_precisions, crowding
from maskx_d2.evaluation.run_files import evaluation_of, write_evaluation
from maskx_d2.evaluation.tables import FREQUENCY_TITLES, group_table

_TASKS = ("bbox", "segm")


class PartiallySupervisedEvaluator(COCOEvaluator):
    """
    Detectron2's ``COCOEvaluator``, which also reports box and mask AP on A, on B and on all classes. They
    come from the same evaluation, at the cost of :func:`class_precisions`.

    In addition to the results of ``COCOEvaluator`` there are ``bbox_A``, ``bbox_B``, ``segm_A`` and
    ``segm_B``, unless all classes have masks. If the annotations say how many training instances each class
    has, there are also ``bbox_frequent``, ``bbox_common`` and ``bbox_rare``, on thirds of the classes, and
    the same for masks. ``ap_by_group.json`` in the output folder has
    ``{"bbox"|"segm": {"A"|"B"|"all"|...: {metric: value}}}``, null where there is no ground truth.
    Instances without a mask are ignored in the evaluation of masks, which is skipped if none has one.

    On a dataset that labels only some of the model's classes, detections of the others are skipped. For a
    file without annotations, such as COCO's test-dev, detections are written and nothing is evaluated.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        classes_with_masks: Sequence[int],
        model_classes: Sequence[str] | None = None,
        **kwargs,
    ):
        """
        Args:
            dataset_name: a registered dataset.
            classes_with_masks: contiguous indices of A, among the dataset's classes.
            model_classes: names of the model's classes in the order of its indices, by which they are
                matched with the dataset's; None if they are in the same order.
            kwargs: see ``COCOEvaluator``.

        Raises:
            ValueError: the model has other classes than the dataset.
        """
        super().__init__(dataset_name, **kwargs)
        self._dataset_index: dict[int, int] | None = None
        if model_classes is not None:
            names, what = class_split.class_names(dataset_name), f"the dataset {dataset_name!r}"
            self._dataset_index = dict(enumerate(match_classes(model_classes, names, what=what)))
        if self._do_evaluation:
            content = self._coco_api.dataset
            make_whole(content)
            # As its loader does: Detectron2's own, for COCO, keeps all objects.
            keep = not is_read_here(dataset_name) or self._metadata.get("keep_repeated", False)
            path = Path(self._metadata.json_file)
            self._coco_api = coco_of(content, path, keep_repeated=keep)
        self.classes_with_masks = classes_with_masks
        # None makes Detectron2's evaluation ask _tasks_from_predictions() for its tasks.
        self._given_tasks, self._tasks = self._tasks, None
        self._own_index: dict[int, int] | None = None
        self._go_by_own_classes()
        self._precisions: dict[str, np.ndarray] = {}

    def _go_by_own_classes(self) -> None:
        """Use the dataset's classes. The model's list may have more classes, in another order."""
        category_ids = sorted(getattr(self._coco_api, "cats", ()))
        model_index = self._metadata.get("thing_dataset_id_to_contiguous_id", {})
        if not category_ids or not all(category_id in model_index for category_id in category_ids):
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
        limit = self._max_dets_per_image[-1]
        if warning := crowding(self._coco_api, limit):
            logging.getLogger(__name__).warning("%s: raise TEST.DETECTIONS_PER_IMAGE", warning)
        self._logger.info(
            "AP on A (classes with masks), on B (boxes only) and on all, with at most %d detections of a "
            "class in an image:\n%s",
            limit,
            group_table(evaluation.by_group),
        )
        if self._output_dir:
            write_evaluation(Path(self._output_dir), evaluation)
        return results

    def _tasks_from_predictions(self, predictions: list[dict]) -> list[str]:
        """The tasks left to Detectron2. Boxes and masks are evaluated here."""
        return [task for task in self._all_tasks(predictions) if task not in _TASKS]

    def _all_tasks(self, results: list[dict]) -> Sequence[str]:
        return self._given_tasks or super()._tasks_from_predictions(results)

    def _eval_predictions(self, predictions: list[dict], img_ids=None) -> None:
        for index_of in (self._dataset_index, self._own_index):
            if index_of is not None:
                predictions = [
                    {**of_image, "instances": _renumbered(of_image["instances"], index_of)}
                    for of_image in predictions
                ]
        # This also writes the category ids of the dataset into the results, and the results into a file.
        super()._eval_predictions(predictions, img_ids)
        if not self._do_evaluation:
            return
        results = [result for of_image in predictions for result in of_image["instances"]]
        tasks = [task for task in _TASKS if task in self._all_tasks(results)]
        if not any(a.get("segmentation") for a in self._coco_api.dataset["annotations"]):
            if "segm" in tasks:
                self._logger.info("Masks are not evaluated: the ground truth has none.")
            tasks = [task for task in tasks if task != "segm"]
        for task in tasks:
            self._precisions[task] = self._class_precisions(results, task, img_ids)
            self._results[task] = self._metrics(task)

    def _class_precisions(self, results: list[dict], task: str, img_ids=None) -> np.ndarray:
        log = logging.getLogger(COCOeval_opt.__module__)
        log.disabled = True  # It would log four lines for each class.
        try:
            return class_precisions(
                self._coco_api,
                results,
                task,
                image_ids=img_ids,
                max_detections=self._max_dets_per_image[-1],
                evaluation_class=COCOeval_opt if self._use_fast_impl else COCOeval,
            )
        finally:
            log.disabled = False

    def _metrics(self, task: str) -> dict[str, float]:
        """Detectron2's metrics, including AP of each class, from the precision of all classes."""
        precision = self._precisions[task]
        in_per_cent = average_precision(precision, {"all": range(precision.shape[2])})["all"]
        coco_eval = COCOeval(iouType=task)
        coco_eval.eval = {"precision": precision}
        coco_eval.stats = np.nan_to_num(np.array(list(in_per_cent.values())) / 100, nan=-1)
        return self._derive_coco_results(coco_eval, task, class_names=self._metadata.get("thing_classes"))


def _renumbered(results: list[dict], index_of: Mapping[int, int]) -> list[dict]:
    """Results with other class indices as ``category_id``, without those of classes that have none."""
    return [
        {**result, "category_id": index_of[result["category_id"]]}
        for result in results
        if result["category_id"] in index_of
    ]


class PredictionsForFirstRank(COCOEvaluator):
    """For the other processes of a run: sends their predictions to the process that evaluates."""

    def __init__(self) -> None:
        # COCOEvaluator's own is not called, because it reads the annotations.
        self._distributed = True
        self._cpu_device = torch.device("cpu")
        self.reset()
