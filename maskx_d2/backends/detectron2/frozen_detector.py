"""``FrozenDetectorRCNN``: the meta-architecture of stage-wise training."""

from collections.abc import Iterator

from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from torch import nn

from maskx_d2.backends.detectron2.config import in_place_of
from maskx_d2.backends.detectron2.partial_supervision import PartialSupervision
from maskx_d2.data.errors import InputError


@META_ARCH_REGISTRY.register()
class FrozenDetectorRCNN(GeneralizedRCNN):
    """
    A trained detector on which only the mask head is trained: the second stage of stage-wise training
    (section 3.2 of the paper).

    All parts except the mask head have no gradients, compute no losses, and stay in eval mode, so that
    BatchNorm statistics do not change. ``MODEL.WEIGHTS`` must hold the trained detector.
    """

    @configurable
    def __init__(self, **kwargs):
        """
        Args:
            kwargs: see ``GeneralizedRCNN``; ``roi_heads`` must have :class:`PartialSupervision`, and a
                mask head.
        """
        super().__init__(**kwargs)
        if not isinstance(self.roi_heads, PartialSupervision):
            name = type(self.roi_heads).__name__
            raise InputError(
                f"MODEL.ROI_HEADS.NAME is {name!r}, but MODEL.META_ARCHITECTURE 'FrozenDetectorRCNN' needs "
                f"{in_place_of(name)!r}"
            )
        if not self.roi_heads.mask_on:
            raise InputError(
                "MODEL.MASK_ON is False, but MODEL.META_ARCHITECTURE 'FrozenDetectorRCNN' trains the "
                "mask head"
            )
        self.roi_heads.detector_is_frozen = True
        for part in self._frozen_parts():
            part.requires_grad_(False)
        self._missing_weights = [name for name, p in self.named_parameters() if not p.requires_grad]
        self.register_load_state_dict_post_hook(_remember_missing_weights)

    def _frozen_parts(self) -> Iterator[nn.Module]:
        yield from (part for part in self.children() if part is not self.roi_heads)
        yield from (p for p in self.roi_heads.children() if p is not self.roi_heads.mask_head)

    def train(self, mode: bool = True) -> "FrozenDetectorRCNN":
        super().train(mode)
        for part in self._frozen_parts():
            part.eval()
        return self

    def forward(self, batched_inputs: list[dict]):
        """See ``GeneralizedRCNN.forward``; in training the only loss is ``loss_mask``."""
        if self.training and self._missing_weights:
            raise InputError(
                "MODEL.META_ARCHITECTURE 'FrozenDetectorRCNN' trains the mask head of a trained "
                f"detector, but MODEL.WEIGHTS holds no weights for {len(self._missing_weights)} of its "
                f"parameters, {self._missing_weights[0]} among them: give the checkpoint of stage 1"
            )
        return super().forward(batched_inputs)


def _remember_missing_weights(model: FrozenDetectorRCNN, incompatible_keys) -> None:
    missing = set(incompatible_keys.missing_keys)
    model._missing_weights = [name for name in model._missing_weights if name in missing]
