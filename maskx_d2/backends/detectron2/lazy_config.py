"""For LazyConfig: partial supervision in a config of Detectron2."""

from detectron2.config import LazyCall as L
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, FastRCNNOutputLayers, Res5ROIHeads
from omegaconf import DictConfig

from maskx_d2.backends.detectron2.box_predictor import PartiallyLabelledFastRCNNOutputLayers
from maskx_d2.backends.detectron2.class_split import ClassHasMask, classes_with_masks_of
from maskx_d2.backends.detectron2.config import COUNTERPARTS
from maskx_d2.backends.detectron2.data_loader import load_without_masks
from maskx_d2.backends.detectron2.dataset_mapper import PartiallySupervisedMapper
from maskx_d2.backends.detectron2.evaluator import PartiallySupervisedEvaluator
from maskx_d2.backends.detectron2.mask_head import MaskXHead
from maskx_d2.backends.detectron2.roi_heads import side_behind_res5
from maskx_d2.method import build_mask_predictor

_ROI_HEADS = {ROI_HEADS_REGISTRY.get(a): ROI_HEADS_REGISTRY.get(b) for a, b in COUNTERPARTS.items()}


def partially_supervise(model: DictConfig, dataloader: DictConfig, *, split: str, **mask_predictor) -> None:
    """
    Turn Detectron2's LazyConfig of a Mask R-CNN, standard, cascade or C4, and its data into Mask^X R-CNN's
    and the data of a split, in place.

    Args:
        model: as in Detectron2's ``common/models``.
        dataloader: as in ``common/data/coco.py``; its datasets are registered ones.
        split: a value of DATASETS.CLASSES_WITH_MASKS.
        mask_predictor: options of :func:`maskx_d2.method.build_mask_predictor`. If not among them, class
            embeddings are ``"cls"`` where box regression is class-agnostic, else ``"cls+box"``.

    Raises:
        ValueError: the ROI heads are none that this project has a counterpart for.
    """
    heads, train = model.roi_heads, dataloader.train
    if heads._target_ not in _ROI_HEADS:
        expected = ", ".join(kind.__name__ for kind in _ROI_HEADS)
        raise ValueError(f"model.roi_heads is a {heads._target_}, expected one of {expected}")
    is_shared = heads._target_ is Res5ROIHeads
    dataset, test_dataset = train.dataset.names, dataloader.test.dataset.names
    heads._target_ = _ROI_HEADS[heads._target_]
    heads.get_class_has_mask = L(ClassHasMask)(dataset_name=dataset, split=split)

    box_predictors = heads.box_predictors if "box_predictors" in heads else [heads.box_predictor]
    for box_predictor in box_predictors:
        if box_predictor._target_ is FastRCNNOutputLayers:
            box_predictor._target_ = PartiallyLabelledFastRCNNOutputLayers
    is_class_agnostic = box_predictors[-1].get("cls_agnostic_bbox_reg", False)

    head = heads.mask_head
    side = head.input_shape.height
    if is_shared:
        side = side_behind_res5(side)
    head._target_ = MaskXHead
    head.pop("num_classes")
    head.predictor = L(build_mask_predictor)(
        **{
            "num_classes": heads.num_classes,
            "in_channels": head.conv_dims[-1],
            "trunk_channels": [head.input_shape.channels, *head.conv_dims][-2],
            "mask_side": 2 * side,
            "class_embedding": "cls" if is_class_agnostic else "cls+box",
            "box_feature_dim": box_predictors[-1].input_shape.channels,
            **mask_predictor,
        }
    )

    train.dataset = L(load_without_masks)(dataset_name=dataset, split=split)
    train.mapper._target_ = PartiallySupervisedMapper
    train.mapper.num_classes = heads.num_classes
    dataloader.evaluator = L(PartiallySupervisedEvaluator)(
        dataset_name=test_dataset,
        classes_with_masks=L(classes_with_masks_of)(dataset_name=test_dataset, split=split),
    )
