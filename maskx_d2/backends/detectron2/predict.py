"""``Detectron2Detector``: a model of this backend for ``maskx predict``."""

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode, instantiate
from detectron2.data.transforms import AugInput, Augmentation, AugmentationList, ResizeShortestEdge
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling import GeneralizedRCNN, build_model, detector_postprocess
from detectron2.structures import Boxes, Instances
from fvcore.transforms.transform import Transform
from omegaconf import DictConfig
from PIL import Image
from torch import nn

from maskx_d2.backends.detectron2.checkpoint import (
    Checkpointer,
    KnownClasses,
    calibration_of_weights,
    check_classes_of_weights,
    check_weights,
    classes_of_weights,
)
from maskx_d2.backends.detectron2.class_split import (
    category_ids,
    check_num_classes,
    class_names,
    dataset_names,
    evaluated_classes_with_masks,
)
from maskx_d2.backends.detectron2.datasets import register_datasets
from maskx_d2.backends.detectron2.mask_pasting import masks_as_rle
from maskx_d2.data.errors import InputError
from maskx_d2.evaluation.pictures import ClassStyle
from maskx_d2.inference.detector import Detector, KnownObjects, PredictedMask
from maskx_d2.inference.precision import Autocast
from maskx_d2.method import expected_iou


class Detectron2Detector(Detector):
    """See :class:`maskx_d2.inference.detector.Detector`."""

    def __init__(
        self,
        model: nn.Module,
        *,
        classes: KnownClasses,
        augmentations: Sequence[Augmentation],
        image_format: str,
    ):
        """
        Args:
            model: a meta-architecture of Detectron2 with its weights.
            classes: the classes that the model knows.
            augmentations: augmentations that resize an image for the model.
            image_format: ``"RGB"`` or ``"BGR"``.
        """
        self._model = model.eval()
        self._autocast = Autocast(self._model)
        self._augmentations = AugmentationList(augmentations)
        self._image_format = image_format
        self._category_ids = classes.category_ids
        self.style = ClassStyle(
            names=dict(zip(classes.category_ids, classes.names, strict=True)),
            with_masks=frozenset(classes.category_ids[i] for i in classes.with_masks),
            by_teacher=frozenset(classes.category_ids[i] for i in classes.by_teacher),
        )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "Detectron2Detector":
        """
        Args:
            cfg: a YAML config, with MODEL.WEIGHTS. If neither the weights nor the config record the
                classes, those of DATASETS.TEST[0] are used.
        """
        check_weights(cfg.MODEL.WEIGHTS)
        classes = known_classes(cfg)
        model = build_model(cfg)
        Checkpointer(model).load(cfg.MODEL.WEIGHTS)
        detector = cls(
            model,
            classes=classes,
            augmentations=[inference_resize(cfg)],
            image_format=cfg.INPUT.FORMAT,
        )
        detector.calibration = calibration_of_weights(cfg.MODEL.WEIGHTS)
        return detector

    @classmethod
    def from_lazy_config(cls, config: DictConfig, weights: str) -> "Detectron2Detector":
        """
        Args:
            config: a LazyConfig with ``model`` and ``dataloader``. If the weights do not record the
                classes, those of its test dataset are used.
            weights: see :func:`check_weights`.
        """
        for name in ("model", "dataloader"):
            if name not in config:
                raise InputError(f"the LazyConfig has no {name!r}, expected one with model and dataloader")
        check_weights(weights)
        classes = classes_of_weights(weights) or _classes_of_lazy_config(config, weights)
        model = instantiate(config.model)
        Checkpointer(model).load(weights)
        mapper = config.dataloader.test.mapper
        detector = cls(
            model,
            classes=classes,
            augmentations=instantiate(mapper.augmentations),
            image_format=mapper.image_format,
        )
        detector.calibration = calibration_of_weights(weights)
        return detector.to("cuda" if torch.cuda.is_available() else "cpu")

    def to(self, device: str) -> "Detectron2Detector":
        self._model.to(device)
        return self

    @property
    def _device(self) -> torch.device:
        return next(self._model.parameters()).device

    def use_precision(self, precision: str) -> "Detectron2Detector":
        self._autocast = Autocast(self._model, precision)
        return self

    @torch.no_grad()
    def coco_results(self, images: Sequence[Image.Image], image_ids: Sequence[int]) -> list[list[dict]]:
        inputs = [model_input(image, self._augmentations, self._image_format)[0] for image in images]
        leaves_masks_in_boxes = getattr(type(self._model), "inference", None) is GeneralizedRCNN.inference
        with self._autocast.on(self._device):
            if leaves_masks_in_boxes:
                found = self._model.inference(inputs, do_postprocess=False)
            else:
                found = [of_image["instances"] for of_image in self._model(inputs)]
        results = [
            _coco_results(of_image, image_id, image.size)
            if leaves_masks_in_boxes
            else instances_to_coco_json(of_image.to("cpu"), image_id)
            for of_image, image_id, image in zip(found, image_ids, images, strict=True)
        ]
        for detection in itertools.chain.from_iterable(results):
            detection["category_id"] = self._category_ids[detection["category_id"]]
        return results

    @torch.no_grad()
    def masks_in_boxes(
        self, images: Sequence[Image.Image], objects: Sequence[KnownObjects]
    ) -> list[list[PredictedMask | None]]:
        model = self._model
        if not isinstance(model, GeneralizedRCNN) or not getattr(model.roi_heads, "mask_on", True):
            raise InputError(
                f"the model is a {type(model).__name__} without a mask head, expected a GeneralizedRCNN "
                "with one"
            )
        classes = {category_id: number for number, category_id in enumerate(self._category_ids)}
        inputs, known = [], []
        for image, of_image in zip(images, objects, strict=True):
            of_model, resize = model_input(image, self._augmentations, self._image_format)
            inputs.append(of_model)
            known.append(
                Instances(
                    of_model["image"].shape[-2:],
                    pred_boxes=Boxes(resize.apply_box(np.array(of_image.boxes))),
                    pred_classes=torch.tensor([classes[i] for i in of_image.category_ids]),
                )
            )
        with self._autocast.on(self._device):
            found = model.inference(inputs, known, do_postprocess=False)
        return [
            _predicted_masks(of_image, image.size) for of_image, image in zip(found, images, strict=True)
        ]


def model_input(
    image: Image.Image, augmentations: Augmentation, image_format: str
) -> tuple[dict, Transform]:
    """The model's input, and how the image was resized, as in Detectron2's ``DefaultPredictor``."""
    pixels = np.asarray(image)
    given = AugInput(pixels[:, :, ::-1] if image_format == "BGR" else pixels)
    resize = augmentations(given)
    pixels = np.ascontiguousarray(given.image.transpose(2, 0, 1), dtype=np.float32)
    return {"image": torch.from_numpy(pixels), "height": image.height, "width": image.width}, resize


def inference_resize(cfg: CfgNode) -> ResizeShortestEdge:
    """How a YAML config resizes images in inference."""
    return ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)


def known_classes(cfg: CfgNode) -> KnownClasses:
    """
    The classes of a model: those recorded in its weights, else in its config, else those of its dataset.

    Raises:
        InputError: their number is not MODEL.ROI_HEADS.NUM_CLASSES.
    """
    weights = cfg.MODEL.WEIGHTS
    classes = classes_of_weights(weights) or _classes_of_config(cfg) or _classes_of_dataset(cfg)
    if len(classes.names) != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
        raise InputError(
            f"MODEL.ROI_HEADS.NUM_CLASSES is {cfg.MODEL.ROI_HEADS.NUM_CLASSES}, but the checkpoint "
            f"{weights} knows {len(classes.names)} classes"
        )
    return classes


def _classes_of_config(cfg: CfgNode) -> KnownClasses | None:
    classes = KnownClasses.of_config(cfg)
    if classes is not None:
        check_classes_of_weights(cfg.MODEL.WEIGHTS, classes.names)
    return classes


def _classes_of_lazy_config(config: DictConfig, weights: str) -> KnownClasses:
    """Classes with masks are those of the split of :func:`partially_supervise`, or all without a split."""
    (name, *_) = dataset_names(config.dataloader.test.dataset.names)
    names = class_names(name)
    check_classes_of_weights(weights, names)
    class_has_mask = config.model.roi_heads.get("get_class_has_mask")
    with_masks = [True] * len(names) if class_has_mask is None else instantiate(class_has_mask)()
    return KnownClasses(names, category_ids(name), [i for i, has_mask in enumerate(with_masks) if has_mask])


def _classes_of_dataset(cfg: CfgNode) -> KnownClasses:
    """For checkpoints that do not record their classes."""
    register_datasets(cfg)
    datasets = [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]
    if not datasets:
        raise InputError("DATASETS.TEST is empty, expected the dataset whose classes the model knows")
    check_num_classes(cfg, datasets[0])
    names = class_names(datasets[0])
    check_classes_of_weights(cfg.MODEL.WEIGHTS, names)
    with_masks = evaluated_classes_with_masks(cfg, datasets[0])
    return KnownClasses(names, category_ids(datasets[0]), with_masks)


def _coco_results(found: Instances, image_id: int, size: tuple[int, int]) -> list[dict]:
    """The detections in an image, before Detectron2's postprocessing, in COCO's results format."""
    found, rles = _with_rles(found, size)
    results = instances_to_coco_json(found.to("cpu"), image_id)
    for result, rle in zip(results, rles, strict=False):
        result["segmentation"] = rle
    return results


def _predicted_masks(found: Instances, size: tuple[int, int]) -> list[PredictedMask | None]:
    """The masks of an image; None for a box that contains no pixel for Detectron2."""
    masks: list[PredictedMask | None] = [None] * len(found)
    found.mask_scores = expected_iou(found.pred_masks[:, 0].float())
    found, rles = _with_rles(found, size)
    for row, rle, score in zip(found.row.tolist(), rles, found.mask_scores.tolist(), strict=True):
        masks[row] = PredictedMask(rle, score)
    return masks


def _with_rles(found: Instances, size: tuple[int, int]) -> tuple[Instances, list[dict]]:
    """
    Detectron2's postprocessing, but the masks, if there are any, become RLE a few at a time.

    Args:
        found: what a model found in an image, with boxes in pixels of its input.
        size: width and height of the image.

    Returns:
        What Detectron2 keeps of it, with its place in ``found`` as ``row``, and its masks.
    """
    masks = found.pred_masks[:, 0] if found.has("pred_masks") else None
    found = Instances(found.image_size, **found.get_fields())
    if masks is not None:
        found.remove("pred_masks")
    found.row = torch.arange(len(found), device=found.pred_boxes.device)
    width, height = size
    found = detector_postprocess(found, height, width)
    if masks is None:
        return found, []
    masks = masks[found.row].float()
    return found, masks_as_rle(masks, found.pred_boxes.tensor.float(), (height, width))
