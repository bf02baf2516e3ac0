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
from maskx_d2.backends.detectron2.config import TRAIN_ROIS, check_has_keys
from maskx_d2.backends.detectron2.image_field import ImageField
from maskx_d2.backends.detectron2.mask_head import MaskXHead
from maskx_d2.backends.detectron2.roi_crops import ToRGB


class PartialSupervision(ROIHeads):
    """
    In front of ROI heads of Detectron2 among the bases of a class: only positive RoIs whose matched
    instance has a mask are for the mask head; the box losses see everything. It works with any mask head.
    A :class:`MaskXHead` reads the class embeddings of its box predictor, of the last one in a cascade, and
    with box supervision gets the other positive RoIs too.

    An instance has a mask if ``gt_has_mask`` says so (:class:`PartiallySupervisedMapper` writes it;
    where it is absent, all instances of an image with ``gt_masks`` have one) and its class is not one
    whose masks are taken away by ``DATASETS.CLASSES_WITH_MASKS``. In an image with
    ``gt_labelled_classes`` the other classes are left out of the classification loss.

    Stage-wise training: a box predictor that is in eval mode while this module trains is frozen, and its
    box branch with it (as Detectron2's RPN in eval mode, it has no losses). Then only instances that the
    mask head learns from take part and only positive RoIs are sampled, as in the original code.
    """

    @configurable
    def __init__(
        self,
        *,
        get_class_has_mask: Callable[[], Sequence[bool]] | None = None,
        train_rois: str = "proposals",
        rois_per_image: int = 0,
        to_rgb: ToRGB | None = None,
        **kwargs,
    ):
        """
        Args:
            get_class_has_mask: returns for each class whether its masks may be used; None means all
                may. It is called at the first training step, when the datasets are known.
            train_rois: the RoIs of the mask head in training: sampled ``"proposals"``, the
                ``"ground_truth"`` boxes (Birodkar et al., ICCV 2021), or ``"both"``.
            rois_per_image: so many of them at most, drawn at random; 0 for all.
            to_rgb: gives the colours of images, for a mask head whose box supervision reads them.
            kwargs: see Detectron2's ROI heads.
        """
        super().__init__(**kwargs)
        if train_rois not in TRAIN_ROIS or rois_per_image < 0:
            raise ValueError(
                f"train_rois is {train_rois!r} and rois_per_image {rois_per_image}, expected one of "
                f"{TRAIN_ROIS} and 0 or more"
            )
        self._get_class_has_mask = get_class_has_mask
        self._class_has_mask: Tensor | None = None
        self.train_rois = train_rois
        self.rois_per_image = rois_per_image
        self._to_rgb = to_rgb
        self._ground_truth: list[Instances] = []
        supervision = None
        if self.mask_on:
            self.mask_head.register_forward_pre_hook(self._log_num_mask_rois)
        if self.mask_on and isinstance(self.mask_head, MaskXHead):
            self.mask_head.connect_box_predictor(self.box_predictors[-1])
            supervision = self.mask_head.box_supervision
        if supervision is not None:
            supervision.check_rois(train_rois)
        self._masks_learn_from_boxes = supervision is not None
        self._needs_colours = supervision is not None and supervision.needs_colours
        if self._needs_colours and to_rgb is None:
            raise ValueError("to_rgb is None, expected ToRGB for the pairwise loss of the box supervision")

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict) -> dict:
        check_has_keys(cfg)
        ret = super().from_config(cfg, input_shape)
        for name in {"box_predictor", "box_predictors"} & ret.keys():
            ret[name] = _for_partial_labels(cfg, ret[name])
        # Without a dataset to train on there is nothing to take masks away from.
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
        """One, or one for each stage of a cascade."""
        return (
            list(self.box_predictor)
            if isinstance(self.box_predictor, nn.ModuleList)
            else [self.box_predictor]
        )

    @property
    def box_branch_is_frozen(self) -> bool:
        """Whether this is stage-wise training."""
        return self.training and not self.box_predictors[-1].training

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ):
        """See ``ROIHeads.forward``."""
        if self.training and self._needs_colours and targets is not None:
            for image, instances in zip(images, targets, strict=True):
                instances.gt_image = ImageField(self._to_rgb(image), len(instances))
        return super().forward(images, features, proposals, targets)

    @torch.no_grad()
    def label_and_sample_proposals(
        self, proposals: list[Instances], targets: list[Instances]
    ) -> list[Instances]:
        if self.mask_on:
            for instances in targets:
                instances.gt_has_mask = self._has_mask(instances)
                if self._masks_learn_from_boxes:
                    # Of instances without a mask there is nothing to leave out: all masks are of others.
                    has_masks = instances.has("gt_masks")
                    masks = instances.gt_masks[_indices(instances.gt_has_mask)] if has_masks else None
                    instances.gt_other_masks = ImageField(masks, len(instances))
            if self.train_rois != "proposals":
                self._ground_truth = [_as_rois(instances) for instances in targets]
        if not self.box_branch_is_frozen:
            sampled = super().label_and_sample_proposals(proposals, targets)
            for of_image, instances in zip(sampled, targets, strict=True):
                self._hand_on_labelled_classes(of_image, instances)
            return sampled
        if not self._masks_learn_from_boxes:
            targets = [instances[_indices(instances.gt_has_mask)] for instances in targets]
        sampled = super().label_and_sample_proposals(proposals, targets)
        return select_foreground_proposals(sampled, self.num_classes)[0]

    def _hand_on_labelled_classes(self, rois: Instances, targets: Instances) -> None:
        """To the RoIs of an image. Detectron2 hands no fields on where there are no instances."""
        if not targets.has("gt_labelled_classes"):
            return
        for predictor in self.box_predictors:
            if not isinstance(predictor, PartiallyLabelledFastRCNNOutputLayers):
                raise ValueError(
                    f"box_predictor is a {type(predictor).__name__}, expected a "
                    "PartiallyLabelledFastRCNNOutputLayers for images that are labelled in part"
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

    def _with_others_as_background(self, rois: Instances) -> Instances:
        """RoIs of an image, those that the mask head is not trained on as if they were background."""
        # An image without annotations has no positive RoIs and no gt_has_mask.
        if self._masks_learn_from_boxes or not rois.has("gt_has_mask"):
            return rois
        marked = Instances(rois.image_size, **rois.get_fields())
        marked.gt_classes = rois.gt_classes.masked_fill(~rois.gt_has_mask, self.num_classes)
        return marked

    def _at_random(self, rois: Instances) -> Instances:
        """So many RoIs of an image as the mask head is trained on at most."""
        if not 0 < self.rois_per_image < len(rois):
            return rois
        device = rois.gt_classes.device
        return rois[torch.randperm(len(rois), device=device)[: self.rois_per_image]]

    def _log_num_mask_rois(self, mask_head: nn.Module, inputs: tuple) -> None:
        if self.training:
            numbers = [len(rois) for rois in inputs[1]]
            get_event_storage().put_scalar("roi_head/num_mask_samples", sum(numbers) / len(numbers))


def _for_partial_labels(cfg: CfgNode, predictor):
    """Detectron2's box predictor, or its list of them, with classes left out of the loss where need be."""
    if isinstance(predictor, list | nn.ModuleList):
        return [_for_partial_labels(cfg, each) for each in predictor]
    gathered = cfg.MODEL.ROI_BOX_HEAD.GATHERED_REGRESSION
    if type(predictor) is not FastRCNNOutputLayers:
        if gathered and not isinstance(predictor, GatheredFastRCNNOutputLayers):
            raise ValueError(
                "MODEL.ROI_BOX_HEAD.GATHERED_REGRESSION is True, but the box predictor is a "
                f"{type(predictor).__name__}, expected Detectron2's FastRCNNOutputLayers"
            )
        return predictor
    kind = GatheredFastRCNNOutputLayers if gathered else PartiallyLabelledFastRCNNOutputLayers
    # With one seed all models have the weights of Detectron2's.
    with torch.random.fork_rng(devices=[]):
        new = kind(
            cfg,
            ShapeSpec(channels=predictor.cls_score.in_features),
            box2box_transform=predictor.box2box_transform,
        )
    new.load_state_dict(predictor.state_dict())
    return new


def _indices(chosen: Tensor) -> Tensor:
    """(N,) bool -> indices: picked by bool, each field of Instances would have a GPU waited for."""
    return chosen.nonzero()[:, 0]


def _as_rois(targets: Instances) -> Instances:
    """The ground-truth boxes of an image as if they had been proposed."""
    rois = Instances(targets.image_size, **targets.get_fields())
    rois.proposal_boxes = targets.gt_boxes
    return rois
