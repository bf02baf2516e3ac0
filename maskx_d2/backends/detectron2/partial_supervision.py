"""``PartialSupervision``: what Detectron2's ROI heads need where some instances have no mask."""

from collections.abc import Callable, Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import ROIHeads, select_foreground_proposals
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from maskx_d2.backends.detectron2.box_predictor import (
    GatheredFastRCNNOutputLayers,
    PartiallyLabelledFastRCNNOutputLayers,
)
from maskx_d2.backends.detectron2.class_split import ClassHasMask
from maskx_d2.backends.detectron2.config import check_has_keys
from maskx_d2.backends.detectron2.image_field import ImageField
from maskx_d2.backends.detectron2.mask_head import MaskXHead
from maskx_d2.backends.detectron2.mask_rois import (
    TRAIN_ROIS,
    has_usable_mask,
    indices,
    remember_ground_truth,
    select_mask_rois,
)
from maskx_d2.backends.detectron2.roi_crops import ToRGB
from maskx_d2.data.errors import InputError


class PartialSupervision(ROIHeads):
    """
    Mixin that goes before Detectron2's ROI heads in the bases of a class. Only positive RoIs whose matched
    instance has a mask reach the mask head; the box losses see everything. It works with any mask head. A
    :class:`MaskXHead` reads its class embeddings from the box predictor (the last one in a cascade) and,
    with box supervision, also gets the other positive RoIs. With a teacher, those whose instance has one of
    its masks (``gt_teacher_score``) reach it too.

    An instance has a mask if ``gt_has_mask`` says so and ``DATASETS.CLASSES_WITH_MASKS`` does not remove
    the masks of its class. :class:`PartiallySupervisedMapper` sets ``gt_has_mask``; if it is absent, all
    instances of an image with ``gt_masks`` have a mask. In an image with ``gt_labelled_classes``, the other
    classes are left out of the classification loss.

    Stage-wise training (``detector_is_frozen``) trains only the mask head: the box and keypoint branches
    compute no losses, only instances that the mask head learns from are used, and only positive RoIs are
    sampled, as in the original code.
    """

    @configurable
    def __init__(
        self,
        *,
        get_class_has_mask: Callable[[], Sequence[bool]] | None = None,
        train_rois: str = "proposals",
        rois_per_image: int = 0,
        to_rgb: ToRGB | None = None,
        detector_is_frozen: bool = False,
        **kwargs,
    ):
        """
        Args:
            get_class_has_mask: returns for each class whether its masks may be used; None means all
                may. It is called at the first training step, when the datasets are known.
            train_rois, rois_per_image: see :func:`select_mask_rois`.
            to_rgb: gives the colours of images, for a mask head whose box supervision reads them.
            detector_is_frozen: whether only the mask head is trained; :class:`FrozenDetectorRCNN` sets it.
            kwargs: see Detectron2's ROI heads.
        """
        super().__init__(**kwargs)
        if train_rois not in TRAIN_ROIS or rois_per_image < 0:
            raise InputError(
                f"train_rois is {train_rois!r} and rois_per_image {rois_per_image}, expected one of "
                f"{TRAIN_ROIS} and 0 or more"
            )
        self._get_class_has_mask = get_class_has_mask
        self._class_has_mask: Tensor | None = None
        self.train_rois = train_rois
        self.rois_per_image = rois_per_image
        self._to_rgb = to_rgb
        self.detector_is_frozen = detector_is_frozen
        supervision = None
        is_maskx = self.mask_on and isinstance(self.mask_head, MaskXHead)
        if is_maskx:
            self.mask_head.connect_box_predictor(self.box_predictors[-1])
            supervision = self.mask_head.box_supervision
        if supervision is not None:
            supervision.check_rois(train_rois)
        self._masks_learn_from_boxes = supervision is not None
        self._teacher = self.mask_head.teacher if is_maskx else None
        self._needs_colours = supervision is not None and supervision.needs_colours
        if self._needs_colours and to_rgb is None:
            raise InputError("to_rgb is None, expected ToRGB for the pairwise loss of the box supervision")

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict) -> dict:
        check_has_keys(cfg)
        ret = super().from_config(cfg, input_shape)
        for name in {"box_predictor", "box_predictors"} & ret.keys():
            ret[name] = _for_partial_labels(cfg, ret[name])
        # Without a training dataset there are no masks to remove.
        if cfg.DATASETS.CLASSES_WITH_MASKS != "all" and cfg.DATASETS.TRAIN:
            ret["get_class_has_mask"] = ClassHasMask(cfg.DATASETS.TRAIN[0], cfg.DATASETS.CLASSES_WITH_MASKS)
        ret["train_rois"] = cfg.MODEL.ROI_MASK_HEAD.TRAIN_ROIS
        ret["rois_per_image"] = cfg.MODEL.ROI_MASK_HEAD.ROIS_PER_IMAGE
        if cfg.MODEL.ROI_MASK_HEAD.BOX_SUPERVISION.PAIRWISE > 0:
            ret["to_rgb"] = ToRGB(
                pixel_mean=cfg.MODEL.PIXEL_MEAN,
                pixel_std=cfg.MODEL.PIXEL_STD,
                image_format=cfg.INPUT.FORMAT,
            )
        return ret

    @property
    def box_predictors(self) -> list[FastRCNNOutputLayers]:
        """The box predictor, or one for each stage of a cascade."""
        return (
            list(self.box_predictor)
            if isinstance(self.box_predictor, nn.ModuleList)
            else [self.box_predictor]
        )

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ):
        """See ``ROIHeads.forward``."""
        if self.training:
            self.add_colours(images, targets)
        return super().forward(images, features, proposals, targets)

    def add_colours(self, images: ImageList, targets: list[Instances] | None) -> None:
        """Give the targets their image as ``gt_image``, where a loss of the mask head needs it."""
        if self._needs_colours and targets is not None:
            for image, instances in zip(images, targets, strict=True):
                instances.gt_image = ImageField(self._to_rgb(image), len(instances))

    @torch.no_grad()
    def label_and_sample_proposals(
        self, proposals: list[Instances], targets: list[Instances]
    ) -> list[Instances]:
        if self.mask_on:
            for instances in targets:
                instances.gt_has_mask = self._has_mask(instances)
                if self._masks_learn_from_boxes:
                    # Masks need not be filtered for an instance without one: all belong to other instances.
                    has_masks = instances.has("gt_masks")
                    masks = instances.gt_masks[indices(instances.gt_has_mask)] if has_masks else None
                    instances.gt_other_masks = ImageField(masks, len(instances))
        if self.detector_is_frozen:
            if not self._masks_learn_from_boxes:
                targets = [i[indices(has_usable_mask(i, self._teacher))] for i in targets]
            sampled = super().label_and_sample_proposals(proposals, targets)
            sampled, _ = select_foreground_proposals(sampled, self.num_classes)
        else:
            sampled = super().label_and_sample_proposals(proposals, targets)
            for of_image, instances in zip(sampled, targets, strict=True):
                self._hand_on_labelled_classes(of_image, instances)
        if self.mask_on and self.train_rois != "proposals":
            remember_ground_truth(sampled, targets)
        return sampled

    def select_mask_rois(self, sampled: list[Instances]) -> list[Instances]:
        """:func:`select_mask_rois` with the options of this module."""
        rois = select_mask_rois(
            sampled,
            num_classes=self.num_classes,
            include_box_only=self._masks_learn_from_boxes,
            teacher=self._teacher,
            train_rois=self.train_rois,
            rois_per_image=self.rois_per_image,
        )
        get_event_storage().put_scalar("roi_head/num_mask_samples", sum(map(len, rois)) / len(rois))
        return rois

    def _hand_on_labelled_classes(self, rois: Instances, targets: Instances) -> None:
        """Set them on the RoIs of an image. Detectron2 passes on no fields if there are no instances."""
        if not targets.has("gt_labelled_classes"):
            return
        for predictor in self.box_predictors:
            if not isinstance(predictor, PartiallyLabelledFastRCNNOutputLayers):
                raise InputError(
                    f"box_predictor is a {type(predictor).__name__}, expected a "
                    "PartiallyLabelledFastRCNNOutputLayers for partially labelled images"
                )
        rois.gt_labelled_classes = targets.gt_labelled_classes.of_length(len(rois))

    def _has_mask(self, targets: Instances) -> Tensor:
        """(number of instances,) bool."""
        if targets.has("gt_has_mask"):
            has_mask = targets.gt_has_mask
        else:
            has_mask = torch.full_like(targets.gt_classes, targets.has("gt_masks"), dtype=torch.bool)
        if self._get_class_has_mask is None:
            return has_mask
        if self._class_has_mask is None:
            self._class_has_mask = torch.as_tensor(self._get_class_has_mask(), dtype=torch.bool)
        self._class_has_mask = self._class_has_mask.to(has_mask.device)
        return has_mask & self._class_has_mask[targets.gt_classes]


def _for_partial_labels(cfg: CfgNode, predictor):
    """Detectron2's box predictor, or list of them, in a form that can leave classes out of the loss."""
    if isinstance(predictor, list | nn.ModuleList):
        return [_for_partial_labels(cfg, each) for each in predictor]
    gathered = cfg.MODEL.ROI_BOX_HEAD.GATHERED_REGRESSION
    if type(predictor) is not FastRCNNOutputLayers:
        if gathered and not isinstance(predictor, GatheredFastRCNNOutputLayers):
            raise InputError(
                "MODEL.ROI_BOX_HEAD.GATHERED_REGRESSION is True, but the box predictor is a "
                f"{type(predictor).__name__}, expected Detectron2's FastRCNNOutputLayers"
            )
        return predictor
    kind = GatheredFastRCNNOutputLayers if gathered else PartiallyLabelledFastRCNNOutputLayers
    # So that, with the same seed, all models have the same weights as Detectron2's.
    with torch.random.fork_rng(devices=[]):
        new = kind(
            cfg,
            ShapeSpec(channels=predictor.cls_score.in_features),
            box2box_transform=predictor.box2box_transform,
        )
    new.load_state_dict(predictor.state_dict())
    return new
