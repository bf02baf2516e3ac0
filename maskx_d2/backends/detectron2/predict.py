"""``Detectron2Detector``: a model of this backend for ``maskx predict``."""

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultPredictor
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling import GeneralizedRCNN, detector_postprocess
from detectron2.structures import Boxes, Instances
from fvcore.transforms.transform import Transform
from PIL import Image

from maskx_d2.backends.detectron2.checkpoint import (
    Checkpointer,
    KnownClasses,
    check_classes_of_weights,
    check_weights,
    classes_of_weights,
)
from maskx_d2.backends.detectron2.class_split import (
    category_ids,
    check_num_classes,
    class_names,
    evaluated_classes_with_masks,
)
from maskx_d2.backends.detectron2.datasets import register_datasets
from maskx_d2.data.rle import encode
from maskx_d2.evaluation.pictures import ClassStyle
from maskx_d2.inference.detector import Detector, KnownObjects, PredictedMask
from maskx_d2.method import expected_iou


class Detectron2Detector(Detector):
    """See :class:`maskx_d2.inference.detector.Detector`."""

    def __init__(self, cfg: CfgNode):
        """
        Args:
            cfg: the config, with MODEL.WEIGHTS. Where these do not say which classes they know, they are
                those of DATASETS.TEST[0].
        """
        check_weights(cfg.MODEL.WEIGHTS)
        classes = classes_of_weights(cfg.MODEL.WEIGHTS) or _classes_of_dataset(cfg)
        if len(classes.names) != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
            raise ValueError(
                f"MODEL.ROI_HEADS.NUM_CLASSES is {cfg.MODEL.ROI_HEADS.NUM_CLASSES}, but the checkpoint "
                f"{cfg.MODEL.WEIGHTS} knows {len(classes.names)} classes"
            )
        self._category_ids = classes.category_ids
        self.style = ClassStyle(
            names=dict(zip(classes.category_ids, classes.names, strict=True)),
            with_masks=frozenset(classes.category_ids[i] for i in classes.with_masks),
        )
        without_weights = cfg.clone()
        without_weights.defrost()
        without_weights.MODEL.WEIGHTS = ""
        self._predictor = DefaultPredictor(without_weights)
        Checkpointer(self._predictor.model).load(cfg.MODEL.WEIGHTS)

    def to(self, device: str) -> "Detectron2Detector":
        self._predictor.model.to(device)
        return self

    @torch.no_grad()
    def coco_results(self, images: Sequence[Image.Image], image_ids: Sequence[int]) -> list[list[dict]]:
        found = self._predictor.model([self._input(image)[0] for image in images])
        results = [
            instances_to_coco_json(of_image["instances"].to("cpu"), image_id)
            for of_image, image_id in zip(found, image_ids, strict=True)
        ]
        for detection in itertools.chain.from_iterable(results):
            detection["category_id"] = self._category_ids[detection["category_id"]]
        return results

    @torch.no_grad()
    def masks_in_boxes(
        self, images: Sequence[Image.Image], objects: Sequence[KnownObjects]
    ) -> list[list[PredictedMask | None]]:
        model = self._predictor.model
        if not isinstance(model, GeneralizedRCNN) or not getattr(model.roi_heads, "mask_on", True):
            raise ValueError(
                f"the model is a {type(model).__name__} without a mask head, expected a GeneralizedRCNN "
                "with one"
            )
        classes = {category_id: number for number, category_id in enumerate(self._category_ids)}
        inputs, known = [], []
        for image, of_image in zip(images, objects, strict=True):
            model_input, resize = self._input(image)
            inputs.append(model_input)
            known.append(
                Instances(
                    model_input["image"].shape[-2:],
                    pred_boxes=Boxes(resize.apply_box(np.array(of_image.boxes))),
                    pred_classes=torch.tensor([classes[i] for i in of_image.category_ids]),
                    place=torch.arange(len(of_image.boxes)),
                )
            )
        found = model.inference(inputs, known, do_postprocess=False)
        return [
            _predicted_masks(of_image, image.size) for of_image, image in zip(found, images, strict=True)
        ]

    def _input(self, image: Image.Image) -> tuple[dict, Transform]:
        """What the model reads, and how the image was resized: as Detectron2's ``DefaultPredictor``."""
        pixels = np.asarray(image)
        if self._predictor.input_format == "BGR":
            pixels = pixels[:, :, ::-1]
        resize = self._predictor.aug.get_transform(pixels)
        pixels = np.ascontiguousarray(resize.apply_image(pixels).transpose(2, 0, 1), dtype=np.float32)
        return {"image": torch.from_numpy(pixels), "height": image.height, "width": image.width}, resize


def _classes_of_dataset(cfg: CfgNode) -> KnownClasses:
    """For checkpoints that do not say which classes they know."""
    register_datasets(cfg)
    datasets = [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]
    if not datasets:
        raise ValueError("DATASETS.TEST is empty, expected the dataset whose classes the model knows")
    check_num_classes(cfg, datasets[0])
    names = class_names(datasets[0])
    check_classes_of_weights(cfg.MODEL.WEIGHTS, names)
    with_masks = evaluated_classes_with_masks(cfg, datasets[0])
    return KnownClasses(names, category_ids(datasets[0]), with_masks)


def _predicted_masks(found: Instances, size: tuple[int, int]) -> list[PredictedMask | None]:
    """Of an image; None for a box in which Detectron2 sees no pixel."""
    found.mask_scores = expected_iou(found.pred_masks[:, 0])
    masks: list[PredictedMask | None] = [None] * len(found)
    width, height = size
    pasted = detector_postprocess(found, height, width)
    columns = pasted.place.tolist(), pasted.pred_masks, pasted.mask_scores.tolist()
    for place, mask, score in zip(*columns, strict=True):
        masks[place] = PredictedMask(encode(mask.cpu().numpy()), score)
    return masks
