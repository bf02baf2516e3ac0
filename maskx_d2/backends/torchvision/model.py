"""``maskx_rcnn_resnet_fpn``: Mask^X R-CNN as a torchvision detection model."""

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign
from typing_extensions import TypedDict, Unpack

from maskx_d2.backends.torchvision.backbone import (
    NORMS,
    BackboneOptions,
    TimmBackbone,
    build_backbone,
    one_of,
)
from maskx_d2.backends.torchvision.mask_pasting import PastingTransform
from maskx_d2.backends.torchvision.ranges import check_ranges
from maskx_d2.backends.torchvision.roi_heads import MaskXPredictor, MaskXRoIHeads, Target
from maskx_d2.data.errors import InputError
from maskx_d2.method import (
    HOURGLASSES,
    BoxSupervision,
    Hourglass,
    TeacherSupervision,
    build_mask_predictor,
    expected_iou,
)

TRUNKS = ("convs", *HOURGLASSES)
_BOX_SIDE = 7  # of torchvision's RoIAlign for boxes
_MASK_ROI_SIDE = 14  # of its RoIAlign for masks
_HOURGLASS_ROI_SIDE = 32


class TorchvisionOptions(TypedDict, total=False):
    """Numeric options of torchvision's own models; see its ``MaskRCNN``."""

    min_size: int | list[int]
    max_size: int
    image_mean: list[float] | None
    image_std: list[float] | None
    rpn_pre_nms_top_n_train: int
    rpn_pre_nms_top_n_test: int
    rpn_post_nms_top_n_train: int
    rpn_post_nms_top_n_test: int
    rpn_nms_thresh: float
    rpn_fg_iou_thresh: float
    rpn_bg_iou_thresh: float
    rpn_batch_size_per_image: int
    rpn_positive_fraction: float
    rpn_score_thresh: float
    box_score_thresh: float
    box_nms_thresh: float
    box_detections_per_img: int
    box_fg_iou_thresh: float
    box_bg_iou_thresh: float
    box_batch_size_per_image: int
    box_positive_fraction: float
    bbox_reg_weights: list[float] | None


def option_defaults() -> dict[str, object]:
    """Options of :func:`maskx_rcnn_resnet_fpn` that can be written in a config, with their defaults."""
    own = inspect.signature(maskx_rcnn_resnet_fpn).parameters
    of_torchvision = inspect.signature(FasterRCNN).parameters
    return {
        **{name: own[name].default for name in own if name not in ("num_classes", "kwargs")},
        **{name: of_torchvision[name].default for name in TorchvisionOptions.__annotations__},
    }


class MaskXRCNN(MaskRCNN):
    """
    Torchvision's ``MaskRCNN`` with :class:`MaskXRoIHeads`. Inputs, targets and outputs are those of
    torchvision's model; targets may have ``has_mask`` in addition.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        mask_predictor: MaskXPredictor,
        mask_box_supervision: BoxSupervision | None = None,
        mask_teacher: TeacherSupervision | None = None,
        train_rois: str = "proposals",
        rois_per_image: int = 0,
        **kwargs,
    ):
        """
        Args:
            backbone: as for torchvision's ``MaskRCNN``.
            mask_predictor: the last part of the mask head.
            mask_box_supervision, mask_teacher, train_rois, rois_per_image: see :class:`MaskXRoIHeads`.
            kwargs: see torchvision's ``MaskRCNN``, ``box_predictor`` among them.
        """
        super().__init__(backbone, mask_predictor=mask_predictor, **kwargs)
        self.transform = PastingTransform.like(self.transform)
        self.roi_heads = MaskXRoIHeads.from_roi_heads(
            self.roi_heads,
            mask_box_supervision=mask_box_supervision,
            mask_teacher=mask_teacher,
            train_rois=train_rois,
            rois_per_image=rois_per_image,
        )
        if mask_box_supervision is not None and mask_box_supervision.needs_colours:
            # Torchvision hands its RoI heads no images.
            self.transform.register_forward_hook(_add_images)

    def freeze_detector(self) -> None:
        """
        Freeze the detector for stage-wise training (section 3.2 of the paper). From now on, all parts
        except the mask branch have no gradients, stay in eval mode and have no losses.
        """
        self.roi_heads.detector_is_frozen = True
        for part in self._detector_parts():
            part.requires_grad_(False)
        self.train(self.training)

    @torch.inference_mode()
    def masks_in_boxes(
        self, images: list[Tensor], boxes: list[Tensor], labels: list[Tensor], *, paste: bool = True
    ) -> list[dict[str, Tensor]]:
        """
        Predict masks of objects whose boxes and classes are known. The model must be in eval mode.

        Args:
            images: (3, H, W) each, as for a call of the model.
            boxes: (N, 4) boxes of each image, x0, y0, x1, y1 in its pixels.
            labels: (N,) labels of each image; the first class is 1.
            paste: whether to paste the masks into their images, as in detections.

        Returns:
            For each image, ``boxes``, ``labels``, ``masks``, (N, 1, H, W), or (N, 1, M, M) in the boxes if
            they are not pasted, and ``mask_scores``, (N,); see :func:`maskx_d2.method.expected_iou`.
        """
        sizes = [tuple(image.shape[-2:]) for image in images]
        known = [{"boxes": b, "labels": c} for b, c in zip(boxes, labels, strict=True)]
        resized, known = self.transform(images, known)
        found = [{"boxes": of_image["boxes"], "labels": of_image["labels"]} for of_image in known]
        self.roi_heads.add_masks(found, self.backbone(resized.tensors), resized.image_sizes)
        for of_image in found:
            of_image["mask_scores"] = expected_iou(of_image["masks"][:, 0])
        in_boxes = [] if paste else [of_image.pop("masks") for of_image in found]
        found = self.transform.postprocess(found, resized.image_sizes, sizes)
        for of_image, masks in zip(found, in_boxes, strict=False):
            of_image["masks"] = masks
        return found

    def train(self, mode: bool = True) -> "MaskXRCNN":
        super().train(mode)
        if self.roi_heads.detector_is_frozen:
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
    embedding_dropout: float = 0.0,
    transfer_layers: int = 2,
    transfer_hidden_dim: int = 256,
    transfer_activation: str = "leaky_relu",
    mlp_layers: int = 1,
    mlp_hidden_dim: int = 1024,
    mlp_reduced_channels: int = 0,
    box_supervision: dict[str, float] | None = None,
    teacher: dict[str, float] | None = None,
    train_rois: str = "proposals",
    rois_per_image: int = 0,
    backbone: str | None = None,
    weights_backbone: WeightsEnum | str | None = None,
    backbone_weights: str | None = None,
    trainable_backbone_layers: int | None = None,
    norm: str | None = None,
    fpn_channels: int = 256,
    returned_layers: Sequence[int] = (1, 2, 3, 4),
    anchor_sizes: Sequence[Sequence[int]] | None = None,
    anchor_aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
    box_head_dim: int = 1024,
    box_sampling_ratio: int = 2,
    mask_head_channels: Sequence[int] = (256, 256, 256, 256),
    trunk: str = "convs",
    trunk_norm: str = "GN",
    hourglass_channels: int = 64,
    **kwargs: Unpack[TorchvisionOptions],
) -> FasterRCNN:
    """
    Mask^X R-CNN with a ResNet-FPN backbone. The defaults are the paper's final model. All parts except
    the mask predictor are those of ``torchvision.models.detection.maskrcnn_resnet50_fpn``, with the same
    parameter names.

    Args:
        depth: depth of the ResNet: 18, 34, 50, 101 or 152.
        num_classes: number of classes including the background, as in torchvision.
        predictor: ``"transfer"`` (Mask^X R-CNN), ``"agnostic"`` (the paper's baseline),
            ``"class_specific"`` (its oracle, Mask R-CNN), or None for torchvision's Faster R-CNN, the
            first stage of stage-wise training.
        class_embedding, embedding_table, stop_grad, embedding_dropout, transfer_layers,
            transfer_hidden_dim, transfer_activation, mlp_layers, mlp_hidden_dim, mlp_reduced_channels: see
            :func:`maskx_d2.method.build_mask_predictor`. An embedding table has no row for the
            background.
        box_supervision: losses for instances without a mask: arguments of
            :class:`maskx_d2.method.BoxSupervision`, such as ``{"projection": 0.3, "pairwise": 0.3,
            "start": 200, "warmup": 100}``; None for none, as in the paper.
        teacher: the loss for masks by a teacher: arguments of
            :class:`maskx_d2.method.TeacherSupervision`, such as ``{"weight": 1.0, "min_score": 0.5}``; None
            for none.
        train_rois, rois_per_image: the RoIs that the mask branch is trained on, see
            :class:`MaskXRoIHeads`.
        backbone: name of a model of `timm <https://huggingface.co/docs/timm>`_ with features at strides 4
            to 32, such as ``"tf_efficientnet_lite0"``, in place of the ResNet. Images are normalised as for
            that model, unless ``image_mean`` and ``image_std`` are given.
        weights_backbone: ImageNet weights of the ResNet, such as ``"DEFAULT"`` or
            ``torchvision.models.ResNet50_Weights.IMAGENET1K_V1``; for a model of timm ``"DEFAULT"``; None
            for random weights.
        backbone_weights: file with the weights of the backbone, as torchvision or timm provide them.
        trainable_backbone_layers: number of backbone layers to train, counted from the last, 0 to 5; if
            None, as in torchvision, 3 for a pre-trained backbone and all for a randomly initialised one.
        norm: normalisation of the backbone, ``"BN"``, ``"FrozenBN"`` or ``"GN"`` (ResNets only); if None,
            as in torchvision, FrozenBN for a pre-trained backbone and BN for a randomly initialised one.
        fpn_channels: channels of the FPN.
        returned_layers: layers of the ResNet that the FPN reads, from 1 to 4. The FPN has one level for
            each of them, and one more.
        anchor_sizes: sizes of the anchors in pixels for each level of the FPN; torchvision's own if None.
        anchor_aspect_ratios: heights over widths of those anchors.
        box_head_dim: F, width of the box head.
        box_sampling_ratio: samples along each side of a cell in RoIAlign for boxes.
        mask_head_channels: output channels of the convolutions of the mask head. The deconvolution has
            as many as the last.
        trunk: ``"convs"`` for these convolutions, or ``"hourglass_20"``, ``"hourglass_52"`` or
            ``"hourglass_100"`` on RoIs of 32 x 32, with masks of 64 x 64; see
            :class:`maskx_d2.method.Hourglass`.
        trunk_norm: normalisation of an hourglass and of the deconvolution after it, ``"BN"`` or ``"GN"``.
        hourglass_channels: n of an hourglass. The deconvolution has as many channels.
        kwargs: see :class:`TorchvisionOptions`; from Python also torchvision's modules, such as
            ``mask_roi_pool``.

    Returns:
        A :class:`MaskXRCNN`; with ``predictor=None`` torchvision's ``FasterRCNN``.
    """
    check_ranges({**locals(), **kwargs})
    one_of("trunk", trunk, TRUNKS)
    if num_classes < 2:
        raise InputError(f"num_classes is {num_classes}, expected the background and at least one class")
    backbone = build_backbone(
        BackboneOptions(
            depth=depth,
            backbone=backbone,
            weights_backbone=weights_backbone,
            backbone_weights=backbone_weights,
            trainable_backbone_layers=trainable_backbone_layers,
            norm=norm,
            fpn_channels=fpn_channels,
            returned_layers=returned_layers,
        )
    )
    if isinstance(backbone, TimmBackbone):
        for name in ("image_mean", "image_std"):
            if kwargs.get(name) is None:
                kwargs[name] = getattr(backbone, name)
    if anchor_sizes is not None:
        sizes = tuple(tuple(of_level) for of_level in anchor_sizes)
        num_levels = len(returned_layers) + 1
        if len(sizes) != num_levels:
            raise InputError(
                f"anchor_sizes has {len(sizes)} entries, expected one for each of the {num_levels} FPN "
                "levels"
            )
        ratios = (tuple(anchor_aspect_ratios),) * len(sizes)
        kwargs["rpn_anchor_generator"] = AnchorGenerator(sizes, ratios)
    kwargs.setdefault("box_roi_pool", _roi_align(_BOX_SIDE, box_sampling_ratio))
    box_head = TwoMLPHead(fpn_channels * _BOX_SIDE**2, box_head_dim)
    box_predictor = FastRCNNPredictor(box_head_dim, num_classes)
    _initialize_box_branch(box_head, box_predictor)
    if predictor is None:
        return FasterRCNN(backbone, box_head=box_head, box_predictor=box_predictor, **kwargs)
    supervision = None if box_supervision is None else _box_supervision(box_supervision, train_rois)
    roi_side = _MASK_ROI_SIDE if trunk == "convs" else _HOURGLASS_ROI_SIDE
    roi_side = kwargs.setdefault("mask_roi_pool", _roi_align(roi_side)).output_size[0]
    hourglass = None
    trunk_channels = channels = mask_head_channels[-1]
    if trunk != "convs":
        one_of("trunk_norm", trunk_norm, ("BN", "GN"))
        hourglass = Hourglass(trunk, fpn_channels, channels=hourglass_channels, norm=NORMS[trunk_norm])
        hourglass.check_side(roi_side)
        trunk_channels, channels = hourglass.out_channels, hourglass_channels
    mask_predictor = build_mask_predictor(
        predictor,
        num_classes=num_classes - 1,
        in_channels=channels,
        mask_side=2 * roi_side,
        trunk_channels=trunk_channels,
        class_embedding=class_embedding,
        embedding_table=embedding_table,
        box_feature_dim=box_head_dim,
        stop_grad=stop_grad,
        embedding_dropout=embedding_dropout,
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
        mask_head=hourglass or MaskRCNNHeads(fpn_channels, mask_head_channels, dilation=1),
        mask_predictor=MaskXPredictor(
            trunk_channels, channels, mask_predictor, norm=None if hourglass is None else NORMS[trunk_norm]
        ),
        mask_box_supervision=supervision,
        mask_teacher=None if teacher is None else _teacher(teacher),
        train_rois=train_rois,
        rois_per_image=rois_per_image,
        **kwargs,
    )


def _box_supervision(options: dict[str, float], train_rois: str) -> BoxSupervision:
    try:
        supervision = BoxSupervision(**options)
    except TypeError as error:
        raise InputError(f"box_supervision is {options}: {error}") from error
    if not supervision.weights:
        raise InputError(f"box_supervision is {options}, expected a weight above 0 or None")
    supervision.check_rois(train_rois)
    return supervision


def _teacher(options: dict[str, float]) -> TeacherSupervision:
    try:
        return TeacherSupervision(**options)
    except (TypeError, ValueError) as error:
        raise InputError(f"teacher is {options}: {error}") from error


def _add_images(
    transform: GeneralizedRCNNTransform, inputs: tuple, output: tuple[ImageList, list[Target] | None]
) -> None:
    """Give each target its ``image``, resized like the target, (3, H, W) RGB in [0, 1]."""
    images, targets = output
    mean, std = (
        images.tensors.new_tensor(values)[:, None, None]
        for values in (transform.image_mean, transform.image_std)
    )
    for target, image in zip(targets or (), images.tensors, strict=False):
        target["image"] = (image * std + mean).clamp(0, 1)


def _roi_align(side: int, sampling_ratio: int = 2) -> MultiScaleRoIAlign:
    """Torchvision's own RoIAlign, except for the options given here."""
    return MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=side, sampling_ratio=sampling_ratio)


def _initialize_box_branch(box_head: TwoMLPHead, box_predictor: FastRCNNPredictor) -> None:
    """
    Initialise the weights as in the original code of Mask R-CNN. Torchvision's are 4 times (classifier) and
    36 times (regressor) as large. They are noise in the class embeddings that a short training does not
    remove: masks of classes trained with masks are as good with it, but those of the other classes are not.
    """
    for layer in (box_head.fc6, box_head.fc7):
        nn.init.kaiming_uniform_(layer.weight, a=1)
        nn.init.zeros_(layer.bias)
    for layer, std in ((box_predictor.cls_score, 0.01), (box_predictor.bbox_pred, 0.001)):
        nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)
