"""``PartiallySupervisedROIHeads``: Detectron2's ROI heads where some instances have no mask."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling.roi_heads import (
    ROI_HEADS_REGISTRY,
    StandardROIHeads,
    select_foreground_proposals,
)
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor

from maskx_d2.hosts.detectron2.box_predictor import (
    GatheredFastRCNNOutputLayers,
    PartiallyLabelledFastRCNNOutputLayers,
)
from maskx_d2.hosts.detectron2.class_split import ClassHasMask
from maskx_d2.hosts.detectron2.mask_head import MaskXHead


@ROI_HEADS_REGISTRY.register()
class PartiallySupervisedROIHeads(StandardROIHeads):
    """
    As Detectron2's ``StandardROIHeads``, but only positive RoIs whose matched instance has a mask reach
    the mask head; the box losses see everything. It works with any mask head and keypoint head.

    An instance has a mask if ``gt_has_mask`` says so (:class:`PartiallySupervisedMapper` writes it;
    where it is absent, all instances of an image with ``gt_masks`` have one) and its class is not one
    whose masks are taken away by ``DATASETS.CLASSES_WITH_MASKS``. In an image with
    ``gt_labelled_classes`` the other classes are left out of the classification loss.

    Stage-wise training: a box head, box predictor or keypoint head that is in eval mode while this
    module trains is frozen (as Detectron2's RPN in eval mode, it has no losses). With a frozen box
    branch only instances with masks take part and only positive RoIs are sampled, as in the
    original code.
    """

    @configurable
    def __init__(self, *, get_class_has_mask: Callable[[], Sequence[bool]] | None = None, **kwargs):
        """
        Args:
            get_class_has_mask: returns for each class whether its masks may be used; None means all
                may. It is called at the first training step, when the datasets are known.
            kwargs: see ``StandardROIHeads``.
        """
        super().__init__(**kwargs)
        self._get_class_has_mask = get_class_has_mask
        self._class_has_mask: Tensor | None = None
        if self.mask_on and isinstance(self.mask_head, MaskXHead):
            self.mask_head.connect_box_predictor(self.box_predictor)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict) -> dict:
        ret = super().from_config(cfg, input_shape)
        if cfg.DATASETS.CLASSES_WITH_MASKS != "all":
            ret["get_class_has_mask"] = ClassHasMask(cfg.DATASETS.TRAIN[0], cfg.DATASETS.CLASSES_WITH_MASKS)
        return ret

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict) -> dict:
        ret = super()._init_box_head(cfg, input_shape)
        gathered = cfg.MODEL.ROI_BOX_HEAD.GATHERED_REGRESSION
        kind = GatheredFastRCNNOutputLayers if gathered else PartiallyLabelledFastRCNNOutputLayers
        # With one seed all models have the weights of Detectron2's.
        with torch.random.fork_rng(devices=[]):
            box_predictor = kind(cfg, ret["box_head"].output_shape)
        box_predictor.load_state_dict(ret["box_predictor"].state_dict())
        ret["box_predictor"] = box_predictor
        return ret

    @property
    def box_branch_is_frozen(self) -> bool:
        """Whether this is stage-wise training."""
        return self.training and not self.box_predictor.training

    @torch.no_grad()
    def label_and_sample_proposals(
        self, proposals: list[Instances], targets: list[Instances]
    ) -> list[Instances]:
        if self.mask_on:
            for instances in targets:
                instances.gt_has_mask = self._has_mask(instances)
        if not self.box_branch_is_frozen:
            sampled = super().label_and_sample_proposals(proposals, targets)
            for of_image, instances in zip(sampled, targets, strict=True):
                if instances.has("gt_labelled_classes"):
                    # Detectron2 hands no fields on where there are no instances.
                    labelled = instances.gt_labelled_classes
                    of_image.gt_labelled_classes = labelled.of_length(len(of_image))
            return sampled
        targets = [instances[instances.gt_has_mask] for instances in targets]
        sampled = super().label_and_sample_proposals(proposals, targets)
        return select_foreground_proposals(sampled, self.num_classes)[0]

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

    def _forward_box(self, features: dict[str, Tensor], proposals: list[Instances]):
        if self.box_branch_is_frozen:
            return {}
        return super()._forward_box(features, proposals)

    def _forward_mask(self, features: dict[str, Tensor], instances: list[Instances]):
        if self.training and self.mask_on:
            instances, _ = select_foreground_proposals(instances, self.num_classes)
            # An image without annotations has no positive RoIs and no gt_has_mask.
            instances = [i[i.gt_has_mask] if len(i) > 0 else i for i in instances]
            num_rois = np.mean([len(i) for i in instances])
            get_event_storage().put_scalar("roi_head/num_mask_samples", num_rois)
        return super()._forward_mask(features, instances)

    def _forward_keypoint(self, features: dict[str, Tensor], instances: list[Instances]):
        if self.training and self.keypoint_on and not self.keypoint_head.training:
            return {}
        return super()._forward_keypoint(features, instances)
