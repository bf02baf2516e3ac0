"""``Detectron2Detector``: a model of this host for ``maskx predict``."""

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from PIL import Image

from maskx_d2.evaluation.pictures import ClassStyle
from maskx_d2.hosts.detectron2.checkpoint import check_classes_of_weights, check_weights
from maskx_d2.hosts.detectron2.class_split import (
    check_num_classes,
    class_names,
    evaluated_classes_with_masks,
)


class Detectron2Detector:
    """See :class:`maskx_d2.predict.Detector`."""

    def __init__(self, cfg: CfgNode):
        """
        Args:
            cfg: the config, with MODEL.WEIGHTS; DATASETS.TEST[0] is the dataset whose classes it knows.
        """
        datasets = [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]
        if not datasets:
            raise ValueError("DATASETS.TEST is empty, expected the dataset whose classes the model knows")
        check_num_classes(cfg, datasets[0])
        names = class_names(datasets[0])
        self._category_ids = _category_ids(datasets[0], len(names))
        self.style = ClassStyle(
            names=dict(zip(self._category_ids, names, strict=True)),
            with_masks=frozenset(
                self._category_ids[i] for i in evaluated_classes_with_masks(cfg, datasets[0])
            ),
        )
        check_weights(cfg.MODEL.WEIGHTS)
        check_classes_of_weights(cfg.MODEL.WEIGHTS, class_names(datasets[0]))
        self._predictor = DefaultPredictor(cfg)

    def detect(self, image: Image.Image, image_id: int) -> list[dict]:
        # DefaultPredictor takes BGR, whatever the model takes.
        instances = self._predictor(np.asarray(image)[:, :, ::-1])["instances"].to("cpu")
        found = instances_to_coco_json(instances, image_id)
        for detection in found:
            detection["category_id"] = self._category_ids[detection["category_id"]]
        return found


def _category_ids(dataset_name: str, num_classes: int) -> list[int]:
    """The dataset's own category ids, class by class; of one that labels some of them, 1, 2, 3, ..."""
    to_contiguous = MetadataCatalog.get(dataset_name).get("thing_dataset_id_to_contiguous_id")
    if to_contiguous is None:
        return list(range(num_classes))
    if len(to_contiguous) < num_classes:
        return list(range(1, num_classes + 1))
    return sorted(to_contiguous, key=to_contiguous.get)
