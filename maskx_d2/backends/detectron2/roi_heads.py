"""Detectron2's ROI heads where some instances have no mask."""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling.roi_heads import (
    ROI_HEADS_REGISTRY,
    CascadeROIHeads,
    Res5ROIHeads,
    StandardROIHeads,
    build_mask_head,
    select_foreground_proposals,
)
from detectron2.structures import Instances
from torch import Tensor, nn

from maskx_d2.backends.detectron2.partial_supervision import PartialSupervision


@ROI_HEADS_REGISTRY.register()
class PartiallySupervisedROIHeads(PartialSupervision, StandardROIHeads):
    """
    Detectron2's ``StandardROIHeads`` with :class:`PartialSupervision`, and any keypoint head. A frozen box
    head, box predictor or keypoint head is one in eval mode.
    """

    def _forward_box(self, features: dict[str, Tensor], proposals: list[Instances], *targets):
        if self.box_branch_is_frozen:
            return {}
        return super()._forward_box(features, proposals, *targets)

    def _forward_mask(self, features: dict[str, Tensor], instances: list[Instances]):
        if self.training and self.mask_on:
            instances = self._mask_rois(instances)
        return super()._forward_mask(features, instances)

    def _mask_rois(self, sampled: list[Instances]) -> list[Instances]:
        """
        The RoIs of each image that the mask head is trained on, and background. Detectron2 leaves out what
        is background, the one place where a GPU has to be waited for.
        """
        rois = sampled
        if self.train_rois != "proposals":
            ground_truth, self._ground_truth = self._ground_truth, []
            rois = (
                ground_truth
                if self.train_rois == "ground_truth"
                else [_joined(*of_image) for of_image in zip(sampled, ground_truth, strict=True)]
            )
        rois = [self._with_others_as_background(i) for i in rois]
        if self.rois_per_image > 0:
            rois = [self._at_random(i) for i in select_foreground_proposals(rois, self.num_classes)[0]]
        return rois

    def _forward_keypoint(self, features: dict[str, Tensor], instances: list[Instances]):
        if self.training and self.keypoint_on and not self.keypoint_head.training:
            return {}
        return super()._forward_keypoint(features, instances)


@ROI_HEADS_REGISTRY.register()
class PartiallySupervisedCascadeROIHeads(PartiallySupervisedROIHeads, CascadeROIHeads):
    """
    Detectron2's ``CascadeROIHeads`` with :class:`PartialSupervision`. Class embeddings are the rows of the
    last stage's classifier: it has seen the best boxes, and box regression is the same for all classes.
    """

    def _match_and_label_boxes(
        self, proposals: list[Instances], stage: int, targets: list[Instances]
    ) -> list[Instances]:
        proposals = super()._match_and_label_boxes(proposals, stage, targets)
        for of_image, instances in zip(proposals, targets, strict=True):
            self._hand_on_labelled_classes(of_image, instances)
        return proposals


@ROI_HEADS_REGISTRY.register()
class PartiallySupervisedRes5ROIHeads(PartialSupervision, Res5ROIHeads):
    """
    Detectron2's ``Res5ROIHeads``, those of C4 models, with :class:`PartialSupervision`. Box and mask branch
    share res5: the class embeddings are what the box predictor has for the means of its features, 2,048
    numbers wide in a ResNet-50 (four times that for its regression). The paper has no such model.
    """

    @configurable
    def __init__(self, **kwargs):
        """
        Args:
            kwargs: see :class:`PartialSupervision` and ``Res5ROIHeads``; ``train_rois`` must be
                ``"proposals"``, whose features are there.
        """
        super().__init__(**kwargs)
        if self.train_rois != "proposals":
            raise ValueError(
                f"train_rois is {self.train_rois!r}, expected 'proposals' where box and mask branch share "
                "their features"
            )
        if self.mask_on:
            self.mask_head.register_forward_pre_hook(self._choose_rois, prepend=True)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict) -> dict:
        without_mask = cfg.clone()
        without_mask.defrost()
        without_mask.MODEL.MASK_ON = False
        ret = super().from_config(without_mask, input_shape)
        if cfg.MODEL.MASK_ON:
            side = side_behind_res5(cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION)
            channels = ret["box_predictor"].cls_score.in_features
            ret["mask_head"] = build_mask_head(cfg, ShapeSpec(channels=channels, height=side, width=side))
        return ret

    def _choose_rois(self, mask_head: nn.Module, inputs: tuple[Tensor, list[Instances]]):
        """Of the positive RoIs those that the mask head is trained on, with their features."""
        if not self.training:
            return None
        features, rois = inputs
        rows = torch.arange(len(features), device=features.device).split([len(i) for i in rois])
        for of_image, of_features in zip(rois, rows, strict=True):
            of_image.row_of_features = of_features
        rois = [self._at_random(i) for i in self._with_masks(rois)]
        return features[cat([i.row_of_features for i in rois])], rois

    def _with_masks(self, rois: list[Instances]) -> list[Instances]:
        """
        Of the positive RoIs of each image those that the mask head is trained on. Detectron2 has looked for
        the positive ones; here a GPU is waited for once, however many images there are.
        """
        marked = [self._with_others_as_background(i) for i in rois]
        is_chosen = iter((cat([i.gt_classes for i in marked]) < self.num_classes).tolist())
        return [of_image[[row for row in range(len(of_image)) if next(is_chosen)]] for of_image in rois]


def side_behind_res5(side: int) -> int:
    """
    Of the features of a RoI, by their side in front of it. That one is what Detectron2 tells a mask head,
    and its own do not ask for it.
    """
    return (side + 1) // 2


def _joined(sampled: Instances, ground_truth: Instances) -> Instances:
    """RoIs of an image, one behind the other, with the fields that both have."""
    if len(sampled) == 0 or len(ground_truth) == 0:
        return sampled if len(ground_truth) == 0 else ground_truth
    fields = sampled.get_fields()
    names = [name for name in ground_truth.get_fields() if name in fields]
    return Instances.cat(
        [Instances(i.image_size, **{name: i.get(name) for name in names}) for i in (sampled, ground_truth)]
    )
