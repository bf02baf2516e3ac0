"""``MaskXRoIHeads``: torchvision's RoI heads with a mask predictor of the method."""

import torch
from torch import Tensor
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, project_masks_on_boxes

from maskx_d2.method import (
    BoxPredictorEmbeddings,
    BoxPredictorWeights,
    ClassSpecificMaskPredictor,
    MaskPredictor,
    TransferMaskPredictor,
    mask_loss,
)

Target = dict[str, Tensor]


class MaskXPredictor(MaskRCNNPredictor):
    """
    Torchvision's deconvolution, then a mask predictor of the method, under the parameter names of
    torchvision's ``MaskRCNNPredictor``, whose checkpoints load into a class-specific one.
    """

    def __init__(self, in_channels: int, dim_reduced: int, mask_predictor: MaskPredictor):
        """
        Args:
            in_channels: channels of the feature before the deconvolution.
            dim_reduced: C, channels of the feature behind it.
            mask_predictor: see :func:`maskx_d2.method.build_mask_predictor`.
        """
        super().__init__(in_channels, dim_reduced, num_classes=1)
        self.mask_fcn_logits = mask_predictor

    def forward(self, features: Tensor, classes: Tensor) -> Tensor:
        """
        Args:
            features: (N, in_channels, M/2, M/2) features of the mask head.
            classes: (N,) classes, the background not counted: torchvision's labels minus one.

        Returns:
            (N, M, M) mask logits.
        """
        upsampled = self.relu(self.conv5_mask(features))
        return self.mask_fcn_logits(upsampled, classes, trunk_features=features)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        # Torchvision's predictor has a row for the background too, the first, which is never used.
        predictor = self.mask_fcn_logits
        if type(predictor) is ClassSpecificMaskPredictor:
            for name, parameter in predictor.named_parameters(recurse=False):
                key = f"{prefix}mask_fcn_logits.{name}"
                if key in state_dict and len(state_dict[key]) == len(parameter) + 1:
                    state_dict[key] = state_dict[key][1:]
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class MaskXRoIHeads(RoIHeads):
    """
    As torchvision's ``RoIHeads``, but the mask branch computes the map of one class for each RoI, and
    only positive RoIs whose matched instance has a mask reach it in training; the box losses see
    everything.

    An instance has a mask if the target's ``has_mask`` (bool, one for each box) says so. Without that
    key all instances have one where the target has ``masks``, and none where it has not.

    Stage-wise training: a box predictor that is in eval mode while this module trains is frozen. There
    are no box losses then, only instances with masks take part, and only positive RoIs are sampled, as
    in the original code.
    """

    def __init__(self, *args, mask_roi_pool, mask_head, mask_predictor: MaskXPredictor, **kwargs):
        """
        Args:
            mask_predictor: its class embeddings, if they are read from a box predictor, are read from
                the one that this module has at the time.
            args, kwargs: see torchvision's ``RoIHeads``.
        """
        super().__init__(
            *args,
            mask_roi_pool=mask_roi_pool,
            mask_head=mask_head,
            mask_predictor=mask_predictor,
            **kwargs,
        )
        self._sampled: tuple[list[Tensor], ...] = ()
        predictor = mask_predictor.mask_fcn_logits
        if isinstance(predictor, TransferMaskPredictor) and isinstance(
            predictor.class_embeddings, BoxPredictorEmbeddings
        ):
            predictor.class_embeddings.connect(self._foreground_weights)

    @classmethod
    def from_roi_heads(cls, roi_heads: RoIHeads) -> "MaskXRoIHeads":
        """These RoI heads with the parts and settings of torchvision's."""
        return cls(
            roi_heads.box_roi_pool,
            roi_heads.box_head,
            roi_heads.box_predictor,
            fg_iou_thresh=roi_heads.proposal_matcher.high_threshold,
            bg_iou_thresh=roi_heads.proposal_matcher.low_threshold,
            batch_size_per_image=roi_heads.fg_bg_sampler.batch_size_per_image,
            positive_fraction=roi_heads.fg_bg_sampler.positive_fraction,
            bbox_reg_weights=roi_heads.box_coder.weights,
            score_thresh=roi_heads.score_thresh,
            nms_thresh=roi_heads.nms_thresh,
            detections_per_img=roi_heads.detections_per_img,
            mask_roi_pool=roi_heads.mask_roi_pool,
            mask_head=roi_heads.mask_head,
            mask_predictor=roi_heads.mask_predictor,
        )

    @property
    def box_branch_is_frozen(self) -> bool:
        """Whether this is stage-wise training."""
        return self.training and not self.box_predictor.training

    def has_mask(self) -> bool:
        """
        False: torchvision's ``forward`` shall leave the mask branch alone, and its check of the targets
        shall not ask for masks.
        """
        return False

    def select_training_samples(self, proposals: list[Tensor], targets: list[Target]):
        """See torchvision's. What it samples for the box branch is kept for the mask branch."""
        samples = super().select_training_samples(proposals, targets)
        self._sampled = samples[:3]
        return samples

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[Target] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """See torchvision's ``RoIHeads.forward``."""
        if not self.training:
            detections, losses = super().forward(features, proposals, image_shapes)
            self._add_masks(detections, features, image_shapes)
            return detections, losses
        if targets is None:
            raise ValueError("targets is None, expected a target for each image in training")
        have_mask = [_has_mask(target) for target in targets]
        if self.box_branch_is_frozen:
            targets = [
                {key: target[key][has_mask] for key in ("boxes", "labels", "masks") if key in target}
                for target, has_mask in zip(targets, have_mask, strict=True)
            ]
            have_mask = [_has_mask(target) for target in targets]
            self.select_training_samples(proposals, targets)
            detections, losses = [], {}
        else:
            detections, losses = super().forward(features, proposals, image_shapes, targets)
        losses["loss_mask"] = self._mask_loss(features, image_shapes, targets, have_mask)
        return detections, losses

    def _mask_loss(self, features, image_shapes, targets, have_mask) -> Tensor:
        boxes, classes, mask_targets = [], [], []
        side = 2 * self.mask_roi_pool.output_size[0]
        samples = zip(*self._sampled, targets, have_mask, strict=True)
        self._sampled = ()
        for proposals, matched, labels, target, has_mask in samples:
            selected = labels > 0
            # In an image without boxes all proposals are background, and matched to nothing.
            selected[selected.clone()] = has_mask[matched[selected]]
            boxes.append(proposals[selected])
            classes.append(labels[selected] - 1)
            if selected.any():
                mask_targets.append(
                    project_masks_on_boxes(target["masks"], boxes[-1], matched[selected], side)
                )
        logits = self._mask_logits(features, boxes, classes, image_shapes)
        if not mask_targets:
            return mask_loss(logits, logits)
        return mask_loss(logits, torch.cat(mask_targets))

    def _add_masks(self, detections: list[dict[str, Tensor]], features, image_shapes) -> None:
        boxes = [detected["boxes"] for detected in detections]
        classes = [detected["labels"] - 1 for detected in detections]
        masks = self._mask_logits(features, boxes, classes, image_shapes).sigmoid().unsqueeze(1)
        for detected, of_image in zip(detections, masks.split([len(b) for b in boxes]), strict=True):
            detected["masks"] = of_image

    def _mask_logits(self, features, boxes: list[Tensor], classes: list[Tensor], image_shapes) -> Tensor:
        pooled = self.mask_roi_pool(features, boxes, image_shapes)
        return self.mask_predictor(self.mask_head(pooled), torch.cat(classes))

    def _foreground_weights(self) -> BoxPredictorWeights:
        """Torchvision's box predictor has the background first, in ``bbox_pred`` too."""
        classifier, regressor = self.box_predictor.cls_score, self.box_predictor.bbox_pred
        num_rows, feature_dim = classifier.weight.shape
        class_specific = len(regressor.weight) == 4 * num_rows
        box = regressor.weight.reshape(num_rows, 4 * feature_dim)[1:] if class_specific else None
        return BoxPredictorWeights(cls=classifier.weight[1:], box=box)


def _has_mask(target: Target) -> Tensor:
    """(number of boxes,) bool."""
    num_boxes = len(target["boxes"])
    if "masks" in target and len(target["masks"]) != num_boxes:
        raise ValueError(
            f"a target has {len(target['masks'])} masks, expected one for each of its {num_boxes} boxes"
        )
    if "has_mask" not in target:
        return torch.full((num_boxes,), "masks" in target, device=target["boxes"].device)
    has_mask = target["has_mask"]
    if has_mask.dtype != torch.bool or has_mask.shape != (num_boxes,):
        raise ValueError(
            f"has_mask of a target is {has_mask.dtype} of shape {tuple(has_mask.shape)}, "
            f"expected torch.bool of shape ({num_boxes},)"
        )
    if has_mask.any() and "masks" not in target:
        raise ValueError("a target has has_mask, but no masks, expected masks where has_mask is true")
    return has_mask
