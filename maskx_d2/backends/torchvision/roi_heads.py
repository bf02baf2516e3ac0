"""``MaskXRoIHeads``: torchvision's RoI heads with a mask predictor of the method."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss

from maskx_d2.backends.torchvision.mask_rois import (
    TRAIN_ROIS,
    MaskRois,
    Target,
    has_usable_mask,
    is_taught,
    select_instances,
    select_mask_rois,
)
from maskx_d2.data.errors import InputError
from maskx_d2.method import (
    BoxPredictorEmbeddings,
    BoxPredictorWeights,
    BoxSupervision,
    ClassSpecificMaskPredictor,
    MaskPredictor,
    TeacherSupervision,
    TransferMaskPredictor,
    mask_loss,
)


class MaskXPredictor(MaskRCNNPredictor):
    """
    Torchvision's deconvolution, followed by a mask predictor of the method, with the parameter names of
    torchvision's ``MaskRCNNPredictor``. Torchvision's checkpoints load into a class-specific predictor.
    """

    def __init__(
        self,
        in_channels: int,
        dim_reduced: int,
        mask_predictor: MaskPredictor,
        *,
        norm: Callable[[int], nn.Module] | None = None,
    ):
        """
        Args:
            in_channels: channels of the feature before the deconvolution.
            dim_reduced: C, channels of the feature after the deconvolution.
            mask_predictor: see :func:`maskx_d2.method.build_mask_predictor`.
            norm: returns the normalisation after the deconvolution, given its channels; None for none.
        """
        super().__init__(in_channels, dim_reduced, num_classes=1)
        self.norm = nn.Identity() if norm is None else norm(dim_reduced)
        self.mask_fcn_logits = mask_predictor

    def forward(self, features: Tensor, classes: Tensor) -> Tensor:
        """
        Args:
            features: (N, in_channels, M/2, M/2) features of the mask head.
            classes: (N,) class indices without the background: torchvision's labels minus one.

        Returns:
            (N, M, M) mask logits.
        """
        upsampled = self.relu(self.norm(self.conv5_mask(features)))
        return self.mask_fcn_logits(upsampled, classes, trunk_features=features)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        # The first row of torchvision's predictor is for the background. It is never used.
        predictor = self.mask_fcn_logits
        if type(predictor) is ClassSpecificMaskPredictor:
            for name, parameter in predictor.named_parameters(recurse=False):
                key = f"{prefix}mask_fcn_logits.{name}"
                if key in state_dict and len(state_dict[key]) == len(parameter) + 1:
                    state_dict[key] = state_dict[key][1:]
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class MaskXRoIHeads(RoIHeads):
    """
    Like torchvision's ``RoIHeads``, but the mask branch computes the map of only one class for each RoI,
    and in training only positive RoIs whose matched instance has a mask reach it; the box losses see
    everything. With box supervision, which goes beyond the paper, the other positive RoIs reach it too,
    with their own losses. Its pairwise loss needs targets with ``image``, (3, H, W) RGB in [0, 1].

    RoIs whose instance has a mask by a teacher can have a loss of their own, ``loss_mask_teacher``. They
    are those with a ``teacher_score`` in the target, a float for each box, above 0 and high enough.

    An instance has a mask if the target's ``has_mask`` (bool, one for each box) says so. Without that
    key, all instances have one if the target has ``masks``, and none otherwise. With ``mask_index`` (int64,
    one for each box), it is that row of ``masks``, so that only masks that exist take memory.

    Stage-wise training (``detector_is_frozen``) trains only the mask branch: there are no box losses, only
    instances that the mask branch learns from are used, and only positive RoIs are sampled, as in the
    original code.
    """

    def __init__(
        self,
        *args,
        mask_roi_pool,
        mask_head,
        mask_predictor: MaskXPredictor,
        mask_box_supervision: BoxSupervision | None = None,
        mask_teacher: TeacherSupervision | None = None,
        train_rois: str = "proposals",
        rois_per_image: int = 0,
        detector_is_frozen: bool = False,
        **kwargs,
    ):
        """
        Args:
            mask_predictor: if its class embeddings are read from a box predictor, they are read from the
                current one of this module.
            mask_box_supervision: losses for RoIs whose instance has only a box; None for none.
            mask_teacher: loss for RoIs whose instance has a mask by a teacher; None for none.
            train_rois, rois_per_image: see :func:`select_mask_rois`.
            detector_is_frozen: whether only the mask branch is trained.
            args, kwargs: see torchvision's ``RoIHeads``.
        """
        super().__init__(
            *args,
            mask_roi_pool=mask_roi_pool,
            mask_head=mask_head,
            mask_predictor=mask_predictor,
            **kwargs,
        )
        if train_rois not in TRAIN_ROIS:
            raise InputError(f"train_rois is {train_rois!r}, expected one of {TRAIN_ROIS}")
        if rois_per_image < 0:
            raise InputError(f"rois_per_image is {rois_per_image}, expected 0 or more")
        self.mask_box_supervision = mask_box_supervision
        self.mask_teacher = mask_teacher
        self.train_rois = train_rois
        self.rois_per_image = rois_per_image
        self.detector_is_frozen = detector_is_frozen
        predictor = mask_predictor.mask_fcn_logits
        if isinstance(predictor, TransferMaskPredictor) and isinstance(
            predictor.class_embeddings, BoxPredictorEmbeddings
        ):
            predictor.class_embeddings.connect(self._foreground_weights)

    @classmethod
    def from_roi_heads(cls, roi_heads: RoIHeads, **kwargs) -> "MaskXRoIHeads":
        """Build from torchvision's RoI heads, with their parts and settings, and additional options."""
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
            **kwargs,
        )

    def has_mask(self) -> bool:
        """
        Always False, so that torchvision's ``forward`` leaves the mask branch alone and its check of the
        targets does not require masks.
        """
        return False

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
            self.add_masks(detections, features, image_shapes)
            return detections, losses
        if targets is None:
            raise InputError("targets is None, expected a target for each image in training")
        include_box_only = self.mask_box_supervision is not None
        if self.detector_is_frozen and not include_box_only:
            usable = [has_usable_mask(target, self.mask_teacher) for target in targets]
            targets = [select_instances(*pair) for pair in zip(targets, usable, strict=True)]
        proposals, matched, labels, regression_targets = self.select_training_samples(proposals, targets)
        losses = {}
        if not self.detector_is_frozen:
            box_features = self.box_head(self.box_roi_pool(features, proposals, image_shapes))
            scores, deltas = self.box_predictor(box_features)
            of_classes, of_boxes = fastrcnn_loss(scores, deltas, labels, regression_targets)
            losses = {"loss_classifier": of_classes, "loss_box_reg": of_boxes}
        rois = select_mask_rois(
            proposals,
            matched,
            labels,
            targets,
            include_box_only=include_box_only,
            teacher=self.mask_teacher,
            train_rois=self.train_rois,
            rois_per_image=self.rois_per_image,
        )
        losses.update(self._mask_losses(features, image_shapes, rois))
        return [], losses

    def _mask_losses(self, features, image_shapes, rois: list[MaskRois]) -> dict[str, Tensor]:
        """``loss_mask`` of RoIs whose instance has a mask, and the losses of the others."""
        logits = self._mask_logits(
            features, [r.boxes for r in rois], [r.classes for r in rois], image_shapes
        )
        if self.mask_box_supervision is None and self.mask_teacher is None:
            return {"loss_mask": mask_loss(logits, _mask_targets(logits, rois))}
        # Indexing by bool would make each tensor wait for the GPU.
        of_image = list(zip(logits.split([len(r.boxes) for r in rois]), rois, strict=True))

        def part(is_chosen: Callable[[MaskRois], Tensor]) -> tuple[Tensor, list[MaskRois]]:
            chosen = [(x, r, is_chosen(r).nonzero()[:, 0]) for x, r in of_image]
            return torch.cat([x[rows] for x, r, rows in chosen]), [r[rows] for _, r, rows in chosen]

        def taught_rois(r: MaskRois) -> Tensor:
            return is_taught(r.target, self.mask_teacher)[r.instances]

        masked_logits, masked = part(lambda r: r.is_masked)
        losses = {"loss_mask": mask_loss(masked_logits, _mask_targets(masked_logits, masked))}
        if self.mask_teacher is not None:
            taught_logits, taught = part(taught_rois)
            losses["loss_mask_teacher"] = self.mask_teacher.loss(
                taught_logits,
                _mask_targets(taught_logits, taught),
                torch.cat([r.teacher_scores for r in taught]),
            )
        if self.mask_box_supervision is not None:
            losses |= self._box_supervision_losses(*part(lambda r: ~r.is_masked & ~taught_rois(r)))
        return losses

    def _box_supervision_losses(self, logits: Tensor, rois: list[MaskRois]) -> dict[str, Tensor]:
        side = logits.shape[-1]
        supervision = self.mask_box_supervision
        losses = supervision(
            logits,
            rois=torch.cat([r.boxes for r in rois]),
            boxes=torch.cat([r.true_boxes for r in rois]),
            other_masks=torch.cat([r.covered_cells(side) for r in rois]),
            colours=torch.cat([r.colours(side) for r in rois]) if supervision.needs_colours else None,
        )
        return {f"loss_mask_{name}": loss for name, loss in losses.items()}

    def add_masks(
        self,
        detections: list[dict[str, Tensor]],
        features: dict[str, Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> None:
        """
        Add ``masks`` to ``boxes`` and ``labels`` of each image: (number of boxes, 1, M, M) probabilities.
        """
        boxes = [detected["boxes"] for detected in detections]
        classes = [detected["labels"] - 1 for detected in detections]
        logits = self._mask_logits(features, boxes, classes, image_shapes)
        masks = logits.float().sigmoid().unsqueeze(1)
        # Not len(), which is a constant in a trace.
        for detected, of_image in zip(detections, masks.split([b.shape[0] for b in boxes]), strict=True):
            detected["masks"] = of_image

    def _mask_logits(self, features, boxes: list[Tensor], classes: list[Tensor], image_shapes) -> Tensor:
        pooled = self.mask_roi_pool(features, boxes, image_shapes)
        return self.mask_predictor(self.mask_head(pooled), torch.cat(classes))

    def _foreground_weights(self) -> BoxPredictorWeights:
        """Torchvision's box predictor has the background first, also in ``bbox_pred``."""
        classifier, regressor = self.box_predictor.cls_score, self.box_predictor.bbox_pred
        num_rows, feature_dim = classifier.weight.shape
        class_specific = len(regressor.weight) == 4 * num_rows
        box = regressor.weight.reshape(num_rows, 4 * feature_dim)[1:] if class_specific else None
        return BoxPredictorWeights(cls=classifier.weight[1:], box=box)


def _mask_targets(logits: Tensor, rois: list[MaskRois]) -> Tensor:
    """(N, M, M) targets for (N, M, M) logits of the RoIs of all images."""
    targets = [r.mask_targets(logits.shape[-1]) for r in rois if len(r.boxes) > 0]
    return torch.cat(targets) if targets else logits
