"""LazyConfig: adds partial supervision to a Detectron2 config, and reads such configs."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, FastRCNNOutputLayers, Res5ROIHeads
from omegaconf import DictConfig

from maskx_d2.backends.detectron2.box_predictor import PartiallyLabelledFastRCNNOutputLayers
from maskx_d2.backends.detectron2.class_split import (
    ClassHasMask,
    class_names,
    classes_with_masks_of,
    dataset_names,
)
from maskx_d2.backends.detectron2.config import COUNTERPARTS
from maskx_d2.backends.detectron2.data_loader import load_without_masks
from maskx_d2.backends.detectron2.dataset_mapper import PartiallySupervisedMapper
from maskx_d2.backends.detectron2.evaluator import PartiallySupervisedEvaluator
from maskx_d2.backends.detectron2.mask_head import MaskXHead
from maskx_d2.backends.detectron2.roi_crops import ToRGB
from maskx_d2.backends.detectron2.roi_heads import side_behind_res5
from maskx_d2.data.errors import InputError, MissingFileError
from maskx_d2.evaluation.average_precision import DETECTIONS_PER_CLASS
from maskx_d2.evaluation.run_files import EVALUATION_FOLDER
from maskx_d2.method import BoxSupervision, Hourglass, TeacherSupervision, build_mask_predictor

HOURGLASS_SIDE = 32
"""Side of the RoIs that hourglasses were published with; the side of their masks is twice that."""

_ROI_HEADS = {ROI_HEADS_REGISTRY.get(a): ROI_HEADS_REGISTRY.get(b) for a, b in COUNTERPARTS.items()}


def load_lazy_config(path: str | Path, overrides: Sequence = ()) -> DictConfig:
    """
    Args:
        path: path of a Python file, which is executed.
        overrides: ``KEY, VALUE, KEY, VALUE, ...``, keys as in ``model.roi_heads.num_classes``.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not Path(path).is_file():
        raise MissingFileError(f"config {str(path)!r} is not a file")
    pairs = zip(overrides[::2], overrides[1::2], strict=True)
    return LazyConfig.apply_overrides(
        LazyConfig.load(str(path)), [f"{key}={value}" for key, value in pairs]
    )


def partially_supervise(
    model: DictConfig,
    dataloader: DictConfig,
    *,
    split: str,
    box_supervision: Mapping[str, float] | None = None,
    teacher: Mapping[str, float] | None = None,
    train_rois: str = "proposals",
    rois_per_image: int = 0,
    trunk: str = "convs",
    trunk_channels: int = 64,
    trunk_norm: str = "GN",
    output_dir: str | None = None,
    **mask_predictor,
) -> None:
    """
    Turn Detectron2's LazyConfig of a Mask R-CNN (standard, cascade or C4) and its data into Mask^X R-CNN
    and the data of a split, in place.

    Args:
        model: as in Detectron2's ``common/models``.
        dataloader: as in ``common/data/coco.py``; its datasets are registered ones.
        split: a value of DATASETS.CLASSES_WITH_MASKS.
        box_supervision: options of :class:`maskx_d2.method.BoxSupervision`; None for no such losses.
        teacher: options of :class:`maskx_d2.method.TeacherSupervision`; None for no such loss.
        train_rois, rois_per_image: see :func:`select_mask_rois`.
        trunk: ``"convs"`` for the convolutions of the config, or the name of a
            :class:`maskx_d2.method.Hourglass`, with RoIs of 32 x 32 and masks of 64 x 64.
        trunk_channels, trunk_norm: n and the normalisation of an hourglass.
        output_dir: folder of the run, as in ``train.output_dir``. The evaluation is written there, for
            ``maskx compare``.
        mask_predictor: options of :func:`maskx_d2.method.build_mask_predictor`. The default class embedding
            is ``"cls"`` if box regression is class-agnostic, otherwise ``"cls+box"``.

    Raises:
        ValueError: the ROI heads have no counterpart in this project, or there are several test datasets,
            but Detectron2's evaluator takes only one.
    """
    heads, train = model.roi_heads, dataloader.train
    if heads._target_ not in _ROI_HEADS:
        expected = ", ".join(kind.__name__ for kind in _ROI_HEADS)
        raise InputError(f"model.roi_heads is a {heads._target_}, expected one of {expected}")
    is_shared = heads._target_ is Res5ROIHeads
    test_dataset, *others = dataset_names(dataloader.test.dataset.names)
    if others:
        raise InputError(
            f"dataloader.test.dataset.names are {[test_dataset, *others]}, expected one: Detectron2's "
            "evaluator is for one dataset"
        )
    heads._target_ = _ROI_HEADS[heads._target_]
    (dataset, *_) = dataset_names(train.dataset.names)
    heads.get_class_has_mask = L(ClassHasMask)(dataset_name=dataset, split=split)
    heads.train_rois, heads.rois_per_image = train_rois, rois_per_image

    box_predictors = heads.box_predictors if "box_predictors" in heads else [heads.box_predictor]
    for box_predictor in box_predictors:
        if box_predictor._target_ is FastRCNNOutputLayers:
            box_predictor._target_ = PartiallyLabelledFastRCNNOutputLayers
    limit = max(box_predictors[-1].get("test_topk_per_image", 0), DETECTIONS_PER_CLASS)
    is_class_agnostic = box_predictors[-1].get("cls_agnostic_bbox_reg", False)

    head = heads.mask_head
    head._target_ = MaskXHead
    head.pop("num_classes")
    before_deconv = [head.input_shape.channels, *head.conv_dims][-2]
    if trunk != "convs":
        _use_hourglass(heads, trunk, trunk_channels, trunk_norm)
        before_deconv = 2 * trunk_channels
    side = side_behind_res5(head.input_shape.height) if is_shared else head.input_shape.height
    head.predictor = L(build_mask_predictor)(
        **{
            "num_classes": heads.num_classes,
            "in_channels": head.conv_dims[-1],
            "trunk_channels": before_deconv,
            "mask_side": 2 * side,
            "class_embedding": "cls" if is_class_agnostic else "cls+box",
            "box_feature_dim": box_predictors[-1].input_shape.channels,
            **mask_predictor,
        }
    )
    if box_supervision is not None:
        head.box_supervision = L(BoxSupervision)(**box_supervision)
        heads.to_rgb = L(ToRGB)(
            pixel_mean=model.pixel_mean, pixel_std=model.pixel_std, image_format=model.input_format
        )

    if teacher is not None:
        head.teacher = L(TeacherSupervision)(**teacher)
        train.mapper.with_teacher = True

    train.dataset._target_ = load_without_masks
    train.dataset.split = split
    train.mapper._target_ = PartiallySupervisedMapper
    train.mapper.num_classes = heads.num_classes
    dataloader.evaluator = L(PartiallySupervisedEvaluator)(
        dataset_name=test_dataset,
        classes_with_masks=L(classes_with_masks_of)(dataset_name=test_dataset, split=split),
        model_classes=L(class_names)(dataset_name=dataset),
        max_dets_per_image=limit,
        output_dir=None if output_dir is None else f"{output_dir}/{EVALUATION_FOLDER}",
    )


def _use_hourglass(heads: DictConfig, name: str, channels: int, norm: str) -> None:
    head, old = heads.mask_head, heads.mask_head.input_shape
    if "mask_pooler" not in heads:
        raise InputError(f"trunk is {name!r}, expected 'convs' if the box and mask branches share features")
    heads.mask_pooler.output_size = HOURGLASS_SIDE
    head.input_shape = ShapeSpec(channels=old.channels, height=HOURGLASS_SIDE, width=HOURGLASS_SIDE)
    head.hourglass = L(Hourglass)(
        name=name, in_channels=old.channels, channels=channels, norm=functools.partial(get_norm, norm)
    )
    head.conv_dims, head.conv_norm = [channels], norm
