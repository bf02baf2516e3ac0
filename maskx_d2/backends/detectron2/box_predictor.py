"""Box predictors for partially labelled images, and for many classes."""

import torch
from detectron2.layers import batched_nms, cat
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from torch import Tensor

_PAIRS_AT_ONCE = 128  # their gathered weights are 2 MiB at a feature width of 1024
# Gathering reads the weights of a class for each pair. For many pairs, computing all boxes is faster.
_MOST_GATHERED = 1 / 64  # of all pairs


class PartiallyLabelledFastRCNNOutputLayers(FastRCNNOutputLayers):
    """
    Detectron2's box predictor, with the same parameters and detections. Classes that an image's dataset
    does not label are left out of the classification of its RoIs: that none of their objects is annotated
    does not mean that there are none.

    Using a dataset's negatives for its own classes only is the idea of cross-dataset training (Yao et al.,
    "Cross-dataset Training for Class Increasing Object Detection", arXiv:2001.04621; Zhou et al., "Simple
    multi-dataset detection", CVPR 2022, arXiv:2102.13086, as dataset-specific losses).
    """

    def losses(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> dict[str, Tensor]:
        """
        See ``FastRCNNOutputLayers.losses``. Images whose proposals have no ``gt_labelled_classes`` (a
        :class:`LabelledClasses`) count as labelled with all classes.
        """
        scores, deltas = predictions
        if any(p.has("gt_labelled_classes") for p in proposals):
            left_out = cat([self._left_out(p, scores.device) for p in proposals])
            # Not -inf, because its product with 0 in a sigmoid's cross-entropy is NaN.
            scores = scores.masked_fill(left_out, torch.finfo(scores.dtype).min)
        return super().losses((scores, deltas), proposals)

    def _left_out(self, proposals: Instances, device: torch.device) -> Tensor:
        """(R, K + 1) bool. The background is never left out."""
        left_out = torch.zeros(len(proposals), self.num_classes + 1, dtype=torch.bool, device=device)
        if proposals.has("gt_labelled_classes"):
            left_out[:, :-1] = ~proposals.gt_labelled_classes.is_labelled
        return left_out


class GatheredFastRCNNOutputLayers(PartiallyLabelledFastRCNNOutputLayers):
    """
    A faster predictor with the same parameters, losses and detections. Inference computes the class scores
    first, and then decodes boxes only for pairs of proposal and class whose score is above the threshold.
    Detectron2 does so for all pairs: with 3,001 classes, 12,004 numbers for each of 1,000 proposals. On a
    CPU, also the regression is done for these pairs alone, by the weights of their classes, unless more
    than 1/64 of all pairs are above the threshold. A GPU regresses all pairs in less time than it gathers
    these weights.

    Boxes that are not finite, as from a model that has diverged, are left out.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            x: (R, ...) features of R proposals.

        Returns:
            In training (R, K + 1) scores and (R, 4K) deltas, as in Detectron2; in inference the scores and
            the flattened features, for :meth:`inference`.
        """
        if self.training:
            return super().forward(x)
        x = torch.flatten(x, start_dim=1)
        return self.cls_score(x), x

    def inference(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> tuple[list[Instances], list[Tensor]]:
        """See ``FastRCNNOutputLayers.inference``."""
        features = predictions[1].split([len(p) for p in proposals])
        scores = self.predict_probs(predictions, proposals)
        detections = [self._detect(*of_image) for of_image in zip(features, scores, proposals, strict=True)]
        return [found for found, _ in detections], [rows for _, rows in detections]

    def predict_boxes(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> list[Tensor]:
        """See ``FastRCNNOutputLayers.predict_boxes``. This computes the boxes of all classes."""
        return super().predict_boxes(self._with_deltas(predictions), proposals)

    def losses(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> dict[str, Tensor]:
        """See :class:`PartiallyLabelledFastRCNNOutputLayers`."""
        return super().losses(self._with_deltas(predictions), proposals)

    def _with_deltas(self, predictions: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The output of :meth:`forward` in either mode -> (R, K + 1) scores and (R, 4K) deltas."""
        scores, deltas_or_features = predictions
        return scores, deltas_or_features if self.training else self.bbox_pred(deltas_or_features)

    def _detect(self, features: Tensor, scores: Tensor, proposals: Instances) -> tuple[Instances, Tensor]:
        """Detections in an image and the proposals that they come from."""
        is_finite = scores.isfinite().all(1, keepdim=True)
        # A GPU is waited for here, then once for boxes that are not finite, and in NMS.
        rows, classes = ((scores[:, :-1] > self.test_score_thresh) & is_finite).nonzero(as_tuple=True)
        scores = scores[rows, classes]
        decoded = self._boxes(features, proposals.proposal_boxes.tensor, rows, classes)
        is_finite = decoded.isfinite().all(1)
        if torch.jit.is_tracing() or not is_finite.all():
            rows, classes, scores = rows[is_finite], classes[is_finite], scores[is_finite]
            decoded = decoded[is_finite]
        boxes = Boxes(decoded)
        boxes.clip(proposals.image_size)
        keep = batched_nms(boxes.tensor, scores, classes, self.test_nms_thresh)
        if self.test_topk_per_image >= 0:
            keep = keep[: self.test_topk_per_image]
        found = Instances(proposals.image_size)
        found.pred_boxes, found.scores, found.pred_classes = boxes[keep], scores[keep], classes[keep]
        return found, rows[keep]

    def _boxes(self, features: Tensor, proposal_boxes: Tensor, rows: Tensor, classes: Tensor) -> Tensor:
        """(P, 4) decoded boxes of P pairs of proposal (``rows``) and class."""
        weight = self.bbox_pred.weight.unflatten(0, (-1, 4))  # (K, 4, F), or (1, 4, F) if class-agnostic
        bias = self.bbox_pred.bias.unflatten(0, (-1, 4))
        if len(weight) == 1:
            classes = torch.zeros_like(classes)

        def gathered(rows: Tensor, classes: Tensor) -> Tensor:
            products = torch.baddbmm(
                bias[classes].unsqueeze(2), weight[classes], features[rows].unsqueeze(2)
            )
            return products.squeeze(2)

        if torch.jit.is_tracing():
            # In a trace, neither branches nor the number of parts may depend on one image's detections.
            deltas = gathered(rows, classes)
        elif not features.is_cpu or len(rows) > _MOST_GATHERED * len(features) * len(weight):
            deltas = self.bbox_pred(features).unflatten(1, (-1, 4))[rows, classes]
        else:
            parts = zip(rows.split(_PAIRS_AT_ONCE), classes.split(_PAIRS_AT_ONCE), strict=True)
            deltas = cat([gathered(*part) for part in parts])
        return self.box2box_transform.apply_deltas(deltas, proposal_boxes[rows])
