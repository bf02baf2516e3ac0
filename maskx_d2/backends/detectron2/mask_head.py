"""``MaskXHead``: the trunk of Detectron2's mask head, with a mask predictor of ``maskx_d2.method``."""

import functools
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, cat, get_norm
from detectron2.modeling.roi_heads import ROI_MASK_HEAD_REGISTRY, mask_head
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from maskx_d2.backends.detectron2.config import check_mask_head_config, roi_heads_are
from maskx_d2.backends.detectron2.mask_rois import is_taught
from maskx_d2.backends.detectron2.roi_crops import average_to_cells, covered_cells
from maskx_d2.data.errors import InputError, MissingFileError
from maskx_d2.method import (
    BoxPredictorEmbeddings,
    BoxPredictorWeights,
    BoxSupervision,
    Hourglass,
    MaskPredictor,
    TeacherSupervision,
    TransferMaskPredictor,
    build_mask_predictor,
    mask_loss,
    mask_statistics,
)


@ROI_MASK_HEAD_REGISTRY.register()
class MaskXHead(MaskRCNNConvUpsampleHead):
    """
    Convolutions and a deconvolution as in Detectron2's ``MaskRCNNConvUpsampleHead``, with the same
    parameter names, followed by a mask predictor: weight transfer, class-agnostic or class-specific. Beyond
    the paper, an hourglass can replace the convolutions, and RoIs whose instance has only a box can have
    their own losses.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        predictor: MaskPredictor,
        conv_dims: list[int],
        conv_norm: str = "",
        hourglass: Hourglass | None = None,
        box_supervision: BoxSupervision | None = None,
        teacher: TeacherSupervision | None = None,
        **kwargs,
    ):
        """
        Args:
            input_shape: shape of the RoI feature, (channels, side, side).
            predictor: see :func:`maskx_d2.method.build_mask_predictor`.
            conv_dims: output channels of the convolutions and, last, of the deconvolution.
            conv_norm: normalisation of the convolutions, as in Detectron2's ``get_norm``; with an
                hourglass, that of the deconvolution.
            hourglass: replaces the convolutions; ``conv_dims`` then has only that of the deconvolution.
            box_supervision: losses for RoIs whose instance has only a box, by ``gt_has_mask``; without it
                all RoIs must have a mask.
            teacher: the loss of RoIs whose instance has a mask by a teacher, by ``gt_teacher_score``.
            kwargs: ``loss_weight`` (of ``loss_mask``), ``vis_period`` of Detectron2's ``BaseMaskRCNNHead``.
        """
        if hourglass is not None:
            if len(conv_dims) != 1:
                raise InputError(f"conv_dims is {conv_dims}, expected one number with an hourglass")
            hourglass.check_side(input_shape.height)
            input_shape = ShapeSpec(
                channels=hourglass.out_channels, height=input_shape.height, width=input_shape.width
            )
        super().__init__(input_shape, num_classes=1, conv_dims=conv_dims, conv_norm=conv_norm, **kwargs)
        self.hourglass = hourglass
        with_norm = hourglass is not None and conv_norm
        self.deconv_norm = get_norm(conv_norm, conv_dims[-1]) if with_norm else nn.Identity()
        self.predictor = predictor
        self.box_supervision = box_supervision
        self.teacher = teacher

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        check_mask_head_config(cfg)
        head = cfg.MODEL.ROI_MASK_HEAD
        if not isinstance(input_shape, ShapeSpec):
            raise InputError(
                f"MODEL.ROI_MASK_HEAD.POOLER_TYPE is {head.POOLER_TYPE!r}, but MaskXHead needs a pooler"
            )
        num_classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
        ret = super().from_config(cfg, input_shape)
        del ret["num_classes"]
        trunk_channels = [input_shape.channels, *ret["conv_dims"]][-2]
        if head.TRUNK != "convs":
            ret["hourglass"] = Hourglass(
                head.TRUNK,
                input_shape.channels,
                channels=head.CONV_DIM,
                norm=functools.partial(get_norm, head.NORM),
            )
            ret["conv_dims"] = [head.CONV_DIM]
            trunk_channels = ret["hourglass"].out_channels
        ret["box_supervision"] = build_box_supervision(cfg)
        if head.TEACHER.WEIGHT > 0:
            ret["teacher"] = TeacherSupervision(
                weight=head.TEACHER.WEIGHT, min_score=head.TEACHER.MIN_SCORE
            )
        table = None
        if head.MASKX_PREDICTOR == "transfer" and head.CLASS_EMBEDDING == "file":
            table = read_embedding_table(head.CLASS_EMBEDDING_FILE, num_classes)
        ret["predictor"] = build_mask_predictor(
            head.MASKX_PREDICTOR,
            num_classes=num_classes,
            in_channels=ret["conv_dims"][-1],
            mask_side=2 * input_shape.height,
            trunk_channels=trunk_channels,
            class_embedding=head.CLASS_EMBEDDING,
            embedding_table=table,
            box_feature_dim=_box_feature_dim(cfg, input_shape.channels),
            stop_grad=head.STOP_GRAD,
            embedding_dropout=head.TRANSFER.EMBEDDING_DROPOUT,
            transfer_layers=head.TRANSFER.NUM_LAYERS,
            transfer_hidden_dim=head.TRANSFER.HIDDEN_DIM,
            transfer_activation=head.TRANSFER.ACTIVATION,
            mlp_layers=head.MLP_BRANCH.NUM_LAYERS,
            mlp_hidden_dim=head.MLP_BRANCH.HIDDEN_DIM,
            mlp_reduced_channels=head.MLP_BRANCH.REDUCED_CHANNELS,
        )
        return ret

    def connect_box_predictor(self, box_predictor: FastRCNNOutputLayers) -> None:
        """If the class embeddings are read from a box predictor, read them from this one."""
        if not isinstance(self.predictor, TransferMaskPredictor):
            return
        embeddings = self.predictor.class_embeddings
        if not isinstance(embeddings, BoxPredictorEmbeddings):
            return
        embeddings.connect(functools.partial(_foreground_weights, box_predictor))
        found = sum(t.shape[1] for t in embeddings.tensors())
        expected = self.predictor.transfer[0].in_features
        if found != expected:
            raise InputError(
                f"the weight transfer function reads class embeddings of width {expected}, but those of "
                f"the box predictor have width {found}"
            )

    def mask_logits(self, x: Tensor, classes: Tensor) -> Tensor:
        """(N, channels, side, side) RoI features and (N,) classes -> (N, M, M) mask logits."""
        trunk_features, features = self._trunk(x)
        return self.predictor(features, classes, trunk_features=trunk_features)

    def layers(self, x: Tensor) -> Tensor:
        """
        (N, channels, side, side) RoI features -> (N, K, M, M) mask logits of all classes, K = 1 if they are
        class-agnostic, as in Detectron2. The cost grows with K; :meth:`forward` uses :meth:`mask_logits`.
        """
        trunk_features, features = self._trunk(x)
        classes = torch.arange(self.predictor.num_classes, device=x.device)[:, None].expand(-1, len(x))
        logits = [self.predictor(features, each, trunk_features=trunk_features) for each in classes]
        return torch.stack(logits, dim=1)

    def _trunk(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """RoI features -> features before and after the deconvolution."""
        # Looked up by name, so that a layer that was replaced is the one that runs.
        for number in range(len(self.conv_norm_relus)):
            x = self.get_submodule(f"mask_fcn{number + 1}")(x)
        if self.hourglass is not None:
            x = self.hourglass(x)
        return x, self.deconv_relu(self.deconv_norm(self.deconv(x)))

    def forward(self, x: Tensor, instances: list[Instances]):
        """
        Args:
            x: (N, channels, side, side) features of the RoIs of all images.
            instances: the RoIs of each image. In training they have ``proposal_boxes``, ``gt_classes`` and
                ``gt_masks``, and for box supervision also ``gt_boxes``, ``gt_has_mask``, ``gt_other_masks``
                and ``gt_image``, as set by :class:`PartiallySupervisedROIHeads`, and for a teacher
                ``gt_teacher_score``. In inference they have ``pred_classes``.

        Returns:
            In training, ``{"loss_mask": ...}`` and the ``"loss_mask_..."`` of a teacher and of box
            supervision; in inference, ``instances`` with ``pred_masks``.
        """
        if not self.training:
            logits = self.mask_logits(x, cat([i.pred_classes for i in instances]))
            # With a single map for each RoI, Detectron2 assumes a class-agnostic head and selects no class.
            # Called through its module, where Detectron2's export substitutes its own function.
            mask_head.mask_rcnn_inference(logits.unsqueeze(1), instances)
            return instances

        logits = self.mask_logits(x, cat([i.gt_classes for i in instances]))
        losses = {}
        if self.box_supervision is not None or self.teacher is not None:
            of_image = logits.split([len(i) for i in instances])
            has_mask = [_has_mask(i) for i in instances]
            taught = [_is_taught(i, self.teacher) for i in instances]

            def part(is_chosen: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
                rows = [of_one.nonzero()[:, 0] for of_one in is_chosen]
                return cat([x[chosen] for x, chosen in zip(of_image, rows, strict=True)]), rows

            if self.teacher is not None:
                losses["loss_mask_teacher"] = self._teacher_loss(instances, *part(taught))
            if self.box_supervision is not None:
                others = [~(a | b) for a, b in zip(has_mask, taught, strict=True)]
                others_logits, rows = part(others)
                losses |= self._box_supervision_losses(others_logits, instances, rows)
            logits, rows = part(has_mask)
            instances = [i[chosen] for i, chosen in zip(instances, rows, strict=True)]
        targets = _mask_targets(logits, instances)
        self._log(logits, targets)
        return {"loss_mask": mask_loss(logits, targets) * self.loss_weight, **losses}

    def _teacher_loss(self, instances: list[Instances], logits: Tensor, taught: list[Tensor]) -> Tensor:
        """Of the RoIs with a mask by a teacher, given their (N, M, M) logits and indices in each image."""
        rois = [i[rows] for i, rows in zip(instances, taught, strict=True)]
        scores = [i.gt_teacher_score for i in rois if len(i) > 0]
        scores = cat(scores) if scores else logits.new_zeros(0)
        return self.teacher.loss(logits, _mask_targets(logits, rois), scores)

    def _box_supervision_losses(
        self, logits: Tensor, instances: list[Instances], without_mask: list[Tensor]
    ) -> dict[str, Tensor]:
        """Losses of the RoIs without a mask, given their (N, M, M) logits and indices in each image."""
        side = logits.shape[-1]
        with_colours = self.box_supervision.needs_colours
        rois, boxes = [logits.new_zeros(0, 4)], [logits.new_zeros(0, 4)]
        other_masks, colours = (
            [logits.new_zeros(0, side, side).bool()],
            [logits.new_zeros(0, 3, side, side)],
        )
        for of_image, chosen in zip(instances, without_mask, strict=True):
            if len(of_image) == 0:  # it has no ground truth either
                continue
            rois.append(of_image.proposal_boxes.tensor[chosen])
            boxes.append(of_image.gt_boxes.tensor[chosen])
            other_masks.append(covered_cells(of_image.gt_other_masks.value, rois[-1], side))
            if with_colours:
                colours.append(average_to_cells(of_image.gt_image.value, rois[-1], side))
        self.box_supervision.set_steps(get_event_storage().iter)
        losses = self.box_supervision(
            logits,
            rois=cat(rois),
            boxes=cat(boxes),
            other_masks=cat(other_masks),
            colours=cat(colours) if with_colours else None,
        )
        return {f"loss_mask_{name}": loss for name, loss in losses.items()}

    def _log(self, logits: Tensor, targets: Tensor) -> None:
        """What Detectron2's mask head logs, under the same names."""
        storage = get_event_storage()
        if len(logits) > 0:
            for name, value in mask_statistics(logits, targets).items():
                storage.put_scalar(f"mask_rcnn/{name}", value)
        if self.vis_period > 0 and storage.iter % self.vis_period == 0:
            pairs = torch.cat([logits.detach().sigmoid().float(), targets.float()], dim=2)
            for i, pair in enumerate(pairs):
                name = f"Left: mask prediction;   Right: mask GT ({i})"
                storage.put_image(name, pair.expand(3, -1, -1))


def build_box_supervision(cfg: CfgNode) -> BoxSupervision | None:
    """Build the losses of MODEL.ROI_MASK_HEAD.BOX_SUPERVISION; None if all of its weights are 0."""
    options = cfg.MODEL.ROI_MASK_HEAD.BOX_SUPERVISION
    supervision = BoxSupervision(**{key.lower(): value for key, value in options.items()})
    return supervision if supervision.weights else None


def read_embedding_table(path: str, num_classes: int) -> Tensor:
    """
    Read fixed class embeddings.

    Args:
        path: a .npy file of shape (``num_classes``, D), in the order of the classes.

    Returns:
        (``num_classes``, D) float32.
    """
    if not Path(path).is_file():
        raise MissingFileError(
            f"MODEL.ROI_MASK_HEAD.CLASS_EMBEDDING_FILE is {path!r}, which is not a file: "
            "maskx embeddings writes one"
        )
    try:
        # Memory-mapped, so that a header cannot ask for more memory than the file has.
        table = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # anything NumPy raises for an invalid file
        raise InputError(f"{path} is not a .npy file of numbers: {error}") from error
    if not isinstance(table, np.ndarray):
        raise InputError(f"{path} holds several arrays, expected a .npy file with one")
    if table.ndim != 2 or len(table) != num_classes or not np.issubdtype(table.dtype, np.number):
        raise InputError(
            f"{path} holds {table.dtype} of shape {table.shape}, expected numbers of shape "
            f"({num_classes}, D) for MODEL.ROI_HEADS.NUM_CLASSES {num_classes}"
        )
    numbers = torch.from_numpy(np.array(table, np.float32))
    if not numbers.isfinite().all():
        raise InputError(f"{path} has numbers that are NaN or infinite")
    return numbers


def _mask_targets(logits: Tensor, instances: list[Instances]) -> Tensor:
    """(N, M, M) targets for (N, M, M) logits of the RoIs of all images."""
    targets = [
        i.gt_masks.crop_and_resize(i.proposal_boxes.tensor, logits.shape[-1]).to(logits.device)
        for i in instances
        if len(i) > 0
    ]
    return cat(targets) if targets else torch.zeros_like(logits)


def _is_taught(rois: Instances, teacher: TeacherSupervision | None) -> Tensor:
    """See :func:`is_taught`. Detectron2 passes on no fields if there are no instances."""
    return is_taught(rois, teacher) if len(rois) > 0 else rois.gt_classes.bool()


def _has_mask(rois: Instances) -> Tensor:
    """(number of RoIs,) bool. Detectron2 passes on no fields if there are no instances."""
    return rois.gt_has_mask if len(rois) > 0 else rois.gt_classes.bool()


def _foreground_weights(box_predictor: FastRCNNOutputLayers) -> BoxPredictorWeights:
    """In Detectron2's box predictor the background is last in ``cls_score`` and absent in ``bbox_pred``."""
    num_classes = box_predictor.num_classes
    box = box_predictor.bbox_pred.weight
    class_specific = len(box) == 4 * num_classes
    return BoxPredictorWeights(
        cls=box_predictor.cls_score.weight[:num_classes],
        box=box.reshape(num_classes, -1) if class_specific else None,
    )


def _box_feature_dim(cfg: CfgNode, in_channels: int) -> int:
    """Width of the box predictor's input: means of res5, or the output of ``FastRCNNConvFCHead``."""
    if roi_heads_are(cfg, "Res5ROIHeads"):
        return in_channels
    box_head = cfg.MODEL.ROI_BOX_HEAD
    if box_head.NUM_FC > 0:
        return box_head.FC_DIM
    channels = box_head.CONV_DIM if box_head.NUM_CONV > 0 else in_channels
    return channels * box_head.POOLER_RESOLUTION**2
