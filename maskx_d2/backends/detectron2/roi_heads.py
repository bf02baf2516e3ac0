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
)
from detectron2.structures import ImageList, Instances
from torch import Tensor

from maskx_d2.backends.detectron2.partial_supervision import PartialSupervision
from maskx_d2.data.errors import InputError


@ROI_HEADS_REGISTRY.register()
class PartiallySupervisedROIHeads(PartialSupervision, StandardROIHeads):
    """Detectron2's ``StandardROIHeads`` with :class:`PartialSupervision`, and any keypoint head."""

    def _forward_box(self, features: dict[str, Tensor], proposals: list[Instances], *targets):
        if self.training and self.detector_is_frozen:
            return {}
        return super()._forward_box(features, proposals, *targets)

    def _forward_mask(self, features: dict[str, Tensor], instances: list[Instances]):
        if not (self.training and self.mask_on):
            return super()._forward_mask(features, instances)
        # Detectron2's own code looks for positive RoIs again, which would wait for the GPU.
        rois = self.select_mask_rois(instances)
        features = {name: features[name] for name in self.mask_in_features}
        if self.mask_pooler is not None:
            features = self.mask_pooler(list(features.values()), [r.proposal_boxes for r in rois])
        return self.mask_head(features, rois)

    def _forward_keypoint(self, features: dict[str, Tensor], instances: list[Instances]):
        if self.training and self.detector_is_frozen:
            return {}
        return super()._forward_keypoint(features, instances)


@ROI_HEADS_REGISTRY.register()
class PartiallySupervisedCascadeROIHeads(PartiallySupervisedROIHeads, CascadeROIHeads):
    """
    Detectron2's ``CascadeROIHeads`` with :class:`PartialSupervision`. Class embeddings are the rows of the
    last stage's classifier, which sees the best boxes; box regression is the same for all classes.
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
    Detectron2's ``Res5ROIHeads``, those of C4 models, with :class:`PartialSupervision`. The box and mask
    branches share res5. The class embeddings are the box predictor's weights for the mean of its features,
    2,048 numbers in a ResNet-50 (four times that for box regression). The paper has no such model.
    """

    @configurable
    def __init__(self, **kwargs):
        """
        Args:
            kwargs: see :class:`PartialSupervision` and ``Res5ROIHeads``; ``train_rois`` must be
                ``"proposals"``, the only RoIs whose features are computed.
        """
        super().__init__(**kwargs)
        if self.train_rois != "proposals":
            raise InputError(
                f"train_rois is {self.train_rois!r}, expected 'proposals' if the box and mask branches "
                "share features"
            )

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

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ):
        """See ``Res5ROIHeads.forward``, replaced in training because it selects the mask RoIs itself."""
        if not self.training:
            return super().forward(images, features, proposals, targets)
        self.add_colours(images, targets)
        sampled = self.label_and_sample_proposals(proposals, targets)
        boxes = [rois.proposal_boxes for rois in sampled]
        x = self._shared_roi_transform([features[name] for name in self.in_features], boxes)
        losses = {}
        if not self.detector_is_frozen:
            losses = self.box_predictor.losses(self.box_predictor(x.mean(dim=[2, 3])), sampled)
        if self.mask_on:
            rows = torch.arange(len(x), device=x.device).split([len(b) for b in boxes])
            for rois, rows_of_image in zip(sampled, rows, strict=True):
                rois.row_of_features = rows_of_image
            rois = self.select_mask_rois(sampled)
            losses.update(self.mask_head(x[cat([r.row_of_features for r in rois])], rois))
        return [], losses


def side_behind_res5(side: int) -> int:
    """
    Side of a RoI's features after res5, given their side before it. Detectron2 tells mask heads the side
    before res5, which its own heads do not read.
    """
    return (side + 1) // 2
