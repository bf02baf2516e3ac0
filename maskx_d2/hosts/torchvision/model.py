"""``maskx_rcnn_resnet_fpn``: Mask^X R-CNN as a torchvision detection model."""

from collections.abc import Sequence
from functools import partial

import torchvision
from torch import Tensor, nn
from torchvision.models import WeightsEnum
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN, resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from maskx_d2.hosts.torchvision.roi_heads import MaskXPredictor, MaskXRoIHeads
from maskx_d2.method import build_mask_predictor

DEPTHS = (18, 34, 50, 101, 152)
NORMS = {"BN": nn.BatchNorm2d, "FrozenBN": FrozenBatchNorm2d, "GN": partial(nn.GroupNorm, 32)}
_BOX_SIDE = 7  # of torchvision's RoIAlign for boxes
_MASK_SIDE = 28  # twice that of its RoIAlign for masks


class MaskXRCNN(MaskRCNN):
    """
    Torchvision's ``MaskRCNN`` with :class:`MaskXRoIHeads`. Inputs, targets and outputs are those of
    torchvision's model; targets may have ``has_mask`` in addition.
    """

    def __init__(self, backbone: nn.Module, *, mask_predictor: MaskXPredictor, **kwargs):
        """
        Args:
            backbone: as for torchvision's ``MaskRCNN``.
            mask_predictor: the last part of the mask head.
            kwargs: see torchvision's ``MaskRCNN``, ``box_predictor`` among them.
        """
        super().__init__(backbone, mask_predictor=mask_predictor, **kwargs)
        self.roi_heads = MaskXRoIHeads.from_roi_heads(self.roi_heads)
        self.detector_is_frozen = False

    def freeze_detector(self) -> None:
        """
        Stage-wise training (section 3.2 of the paper): from now on all parts but the mask branch have no
        gradients, stay in eval mode and have no losses.
        """
        self.detector_is_frozen = True
        for part in self._detector_parts():
            part.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "MaskXRCNN":
        super().train(mode)
        if self.detector_is_frozen:
            for part in self._detector_parts():
                part.eval()
        return self

    def _detector_parts(self) -> tuple[nn.Module, ...]:
        return (self.backbone, self.rpn, self.roi_heads.box_head, self.roi_heads.box_predictor)


def maskx_rcnn_resnet_fpn(
    *,
    depth: int = 50,
    num_classes: int = 91,
    predictor: str | None = "transfer",
    class_embedding: str = "cls+box",
    embedding_table: Tensor | None = None,
    stop_grad: bool = True,
    transfer_layers: int = 2,
    transfer_hidden_dim: int = 256,
    transfer_activation: str = "leaky_relu",
    mlp_layers: int = 1,
    mlp_hidden_dim: int = 1024,
    mlp_reduced_channels: int = 0,
    weights_backbone: WeightsEnum | str | None = None,
    trainable_backbone_layers: int | None = None,
    norm: str | None = None,
    fpn_channels: int = 256,
    anchor_sizes: Sequence[Sequence[int]] | None = None,
    anchor_aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
    box_head_dim: int = 1024,
    mask_head_channels: Sequence[int] = (256, 256, 256, 256),
    **kwargs,
) -> FasterRCNN:
    """
    Mask^X R-CNN with a ResNet-FPN backbone. The defaults are the paper's final model; what is not the
    mask predictor is that of ``torchvision.models.detection.maskrcnn_resnet50_fpn``, whose parameter
    names it has.

    Args:
        depth: of the ResNet: 18, 34, 50, 101 or 152.
        num_classes: number of classes including the background, as in torchvision.
        predictor: ``"transfer"`` (Mask^X R-CNN), ``"agnostic"`` (the paper's baseline),
            ``"class_specific"`` (its oracle, Mask R-CNN), or None for torchvision's Faster R-CNN, the
            first stage of stage-wise training.
        class_embedding, embedding_table, stop_grad, transfer_layers, transfer_hidden_dim,
            transfer_activation, mlp_layers, mlp_hidden_dim, mlp_reduced_channels: see
            :func:`maskx_d2.method.build_mask_predictor`. An embedding table has no row for the background.
        weights_backbone: ImageNet weights of the ResNet, as ``"DEFAULT"`` or
            ``torchvision.models.ResNet50_Weights.IMAGENET1K_V1``; None for random ones.
        trainable_backbone_layers: how many layers of the backbone are trained, from the last, 0 to 5; if
            None, as in torchvision, 3 of a pre-trained one and all of one that starts from random.
        norm: normalisation of the backbone, ``"BN"``, ``"FrozenBN"`` or ``"GN"``; if None, as in
            torchvision, FrozenBN for a pre-trained backbone and BN for one that starts from random.
        fpn_channels: channels of the FPN.
        anchor_sizes: sizes of the anchors in pixels for each of the five levels of the FPN;
            torchvision's own if None.
        anchor_aspect_ratios: heights over widths of those anchors.
        box_head_dim: F, width of the box head.
        mask_head_channels: output channels of the convolutions of the mask head. The deconvolution has
            as many as the last.
        kwargs: see torchvision's ``MaskRCNN``: ``min_size``, ``box_score_thresh``, ...

    Returns:
        A :class:`MaskXRCNN`; with ``predictor=None`` torchvision's ``FasterRCNN``.
    """
    _one_of("depth", depth, DEPTHS)
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}, expected the background and one class at least")
    backbone = _backbone(
        depth=depth,
        weights=weights_backbone,
        trainable_layers=trainable_backbone_layers,
        norm=norm,
        channels=fpn_channels,
    )
    if anchor_sizes is not None:
        sizes = tuple(tuple(of_level) for of_level in anchor_sizes)
        if len(sizes) != 5:
            raise ValueError(
                f"anchor_sizes has {len(sizes)} entries, expected one for each of the 5 FPN levels"
            )
        ratios = (tuple(anchor_aspect_ratios),) * len(sizes)
        kwargs["rpn_anchor_generator"] = AnchorGenerator(sizes, ratios)
    box_head = TwoMLPHead(fpn_channels * _BOX_SIDE**2, box_head_dim)
    box_predictor = FastRCNNPredictor(box_head_dim, num_classes)
    _initialize_box_branch(box_head, box_predictor)
    if predictor is None:
        return FasterRCNN(backbone, box_head=box_head, box_predictor=box_predictor, **kwargs)
    in_channels = mask_head_channels[-1]
    mask_predictor = build_mask_predictor(
        predictor,
        num_classes=num_classes - 1,
        in_channels=in_channels,
        mask_side=_MASK_SIDE,
        class_embedding=class_embedding,
        embedding_table=embedding_table,
        box_feature_dim=box_head_dim,
        stop_grad=stop_grad,
        transfer_layers=transfer_layers,
        transfer_hidden_dim=transfer_hidden_dim,
        transfer_activation=transfer_activation,
        mlp_layers=mlp_layers,
        mlp_hidden_dim=mlp_hidden_dim,
        mlp_reduced_channels=mlp_reduced_channels,
    )
    return MaskXRCNN(
        backbone,
        box_head=box_head,
        box_predictor=box_predictor,
        mask_head=MaskRCNNHeads(fpn_channels, mask_head_channels, dilation=1),
        mask_predictor=MaskXPredictor(in_channels, in_channels, mask_predictor),
        **kwargs,
    )


def _backbone(*, depth, weights, trainable_layers, norm, channels) -> BackboneWithFPN:
    norm = norm or ("BN" if weights is None else "FrozenBN")
    _one_of("norm", norm, tuple(NORMS))
    name = f"resnet{depth}"
    if isinstance(weights, str):
        known = torchvision.models.get_model_weights(name)
        _one_of("weights_backbone", weights, tuple(known.__members__))
        weights = known[weights]
    if trainable_layers is None:
        trainable_layers = 5 if weights is None else 3
    backbone = resnet_fpn_backbone(
        backbone_name=name,
        weights=weights,
        norm_layer=NORMS[norm],
        trainable_layers=trainable_layers,
    )
    if channels != backbone.out_channels:
        # Torchvision's builder has no option for it.
        in_channels = [block[0].in_channels for block in backbone.fpn.inner_blocks]
        backbone.fpn = FeaturePyramidNetwork(in_channels, channels, extra_blocks=LastLevelMaxPool())
        backbone.out_channels = channels
    return backbone


def _initialize_box_branch(box_head: TwoMLPHead, box_predictor: FastRCNNPredictor) -> None:
    """
    Give it the initial weights that Mask R-CNN's original code has. Torchvision's are 4 times (classifier)
    and 36 times (regressor) as large. They are noise in the class embeddings, which a short training does
    not get rid of: masks of classes that were trained with masks are as good with it, those of the others
    are not.
    """
    for layer in (box_head.fc6, box_head.fc7):
        nn.init.kaiming_uniform_(layer.weight, a=1)
        nn.init.zeros_(layer.bias)
    for layer, std in ((box_predictor.cls_score, 0.01), (box_predictor.bbox_pred, 0.001)):
        nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)


def _one_of(name: str, value, allowed: tuple) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(map(repr, allowed))}")
