"""``MaskXHead``: the trunk of Detectron2's mask head with a mask predictor of the method."""

import functools
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling.roi_heads import ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead, mask_rcnn_inference
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor

from maskx_d2.hosts.detectron2.config import check_maskx_config
from maskx_d2.method import (
    BoxPredictorEmbeddings,
    BoxPredictorWeights,
    MaskPredictor,
    TransferMaskPredictor,
    build_mask_predictor,
    mask_loss,
    mask_statistics,
)


@ROI_MASK_HEAD_REGISTRY.register()
class MaskXHead(MaskRCNNConvUpsampleHead):
    """
    Convolutions and a deconvolution as in Detectron2's ``MaskRCNNConvUpsampleHead``, under the same
    parameter names, then a mask predictor: weight transfer, class-agnostic or class-specific.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        predictor: MaskPredictor,
        conv_dims: list[int],
        conv_norm: str = "",
        **kwargs,
    ):
        """
        Args:
            input_shape: shape of the RoI feature, (channels, side, side).
            predictor: see :func:`maskx_d2.method.build_mask_predictor`.
            conv_dims: output channels of the convolutions and, last, of the deconvolution.
            conv_norm: normalisation of the convolutions, as Detectron2's ``get_norm`` knows it.
            kwargs: ``loss_weight``, ``vis_period`` of Detectron2's ``BaseMaskRCNNHead``.
        """
        super().__init__(input_shape, num_classes=1, conv_dims=conv_dims, conv_norm=conv_norm, **kwargs)
        self.predictor = predictor

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        check_maskx_config(cfg)
        head = cfg.MODEL.ROI_MASK_HEAD
        if not isinstance(input_shape, ShapeSpec):
            raise ValueError(
                f"MODEL.ROI_MASK_HEAD.POOLER_TYPE is {head.POOLER_TYPE!r}, but MaskXHead needs a pooler"
            )
        num_classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
        ret = super().from_config(cfg, input_shape)
        del ret["num_classes"]
        table = None
        if head.PREDICTOR == "transfer" and head.CLASS_EMBEDDING == "file":
            table = read_embedding_table(head.CLASS_EMBEDDING_FILE, num_classes)
        ret["predictor"] = build_mask_predictor(
            head.PREDICTOR,
            num_classes=num_classes,
            in_channels=ret["conv_dims"][-1],
            mask_side=2 * input_shape.height,
            trunk_channels=[input_shape.channels, *ret["conv_dims"]][-2],
            class_embedding=head.CLASS_EMBEDDING,
            embedding_table=table,
            box_feature_dim=_box_feature_dim(cfg, input_shape.channels),
            stop_grad=head.STOP_GRAD,
            transfer_layers=head.TRANSFER.NUM_LAYERS,
            transfer_hidden_dim=head.TRANSFER.HIDDEN_DIM,
            transfer_activation=head.TRANSFER.ACTIVATION,
            mlp_layers=head.MLP_BRANCH.NUM_LAYERS,
            mlp_hidden_dim=head.MLP_BRANCH.HIDDEN_DIM,
            mlp_reduced_channels=head.MLP_BRANCH.REDUCED_CHANNELS,
        )
        return ret

    def connect_box_predictor(self, box_predictor: FastRCNNOutputLayers) -> None:
        """Let the class embeddings, if they are read from a box predictor, be read from this one."""
        if not isinstance(self.predictor, TransferMaskPredictor):
            return
        embeddings = self.predictor.class_embeddings
        if not isinstance(embeddings, BoxPredictorEmbeddings):
            return
        embeddings.connect(functools.partial(_foreground_weights, box_predictor))
        found = sum(t.shape[1] for t in embeddings.tensors())
        expected = self.predictor.transfer[0].in_features
        if found != expected:
            raise ValueError(
                f"the weight transfer function reads class embeddings of width {expected}, but those of "
                f"the box predictor have {found}"
            )

    def layers(self, x: Tensor, classes: Tensor) -> Tensor:
        """(N, channels, side, side) RoI features and (N,) classes -> (N, M, M) mask logits."""
        for conv in self.conv_norm_relus:
            x = conv(x)
        return self.predictor(self.deconv_relu(self.deconv(x)), classes, trunk_features=x)

    def forward(self, x: Tensor, instances: list[Instances]):
        """
        Args:
            x: (N, channels, side, side) features of the RoIs of all images.
            instances: for each image the RoIs: in training with ``proposal_boxes``, ``gt_classes`` and
                ``gt_masks``, each with a mask; in inference with ``pred_classes``.

        Returns:
            In training ``{"loss_mask": ...}``; in inference ``instances`` with ``pred_masks``.
        """
        if not self.training:
            logits = self.layers(x, cat([i.pred_classes for i in instances]))
            # Detectron2 takes a single map for each RoI for class-agnostic and picks no class.
            mask_rcnn_inference(logits.unsqueeze(1), instances)
            return instances

        logits = self.layers(x, cat([i.gt_classes for i in instances]))
        with_masks = [i for i in instances if len(i) > 0]
        targets = [
            i.gt_masks.crop_and_resize(i.proposal_boxes.tensor, logits.shape[-1]).to(x.device)
            for i in with_masks
        ]
        targets = cat(targets) if targets else torch.zeros_like(logits)
        self._log(logits, targets)
        return {"loss_mask": mask_loss(logits, targets) * self.loss_weight}

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


def read_embedding_table(path: str, num_classes: int) -> Tensor:
    """
    Read fixed class embeddings.

    Args:
        path: a .npy file of shape (``num_classes``, D), in the order of the classes.

    Returns:
        (``num_classes``, D) float32.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"MODEL.ROI_MASK_HEAD.CLASS_EMBEDDING_FILE is {path!r}, which is no file: "
            "maskx embeddings writes one"
        )
    try:
        table = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is not a .npy file of numbers: {error}") from error
    if table.ndim != 2 or len(table) != num_classes or not np.issubdtype(table.dtype, np.number):
        raise ValueError(
            f"{path} holds {table.dtype} of shape {table.shape}, expected numbers of shape "
            f"({num_classes}, D) for MODEL.ROI_HEADS.NUM_CLASSES {num_classes}"
        )
    return torch.from_numpy(table.astype(np.float32))


def _foreground_weights(box_predictor: FastRCNNOutputLayers) -> BoxPredictorWeights:
    """Detectron2's box predictor has the background last in ``cls_score`` and not in ``bbox_pred``."""
    num_classes = box_predictor.num_classes
    box = box_predictor.bbox_pred.weight
    class_specific = len(box) == 4 * num_classes
    return BoxPredictorWeights(
        cls=box_predictor.cls_score.weight[:num_classes],
        box=box.reshape(num_classes, -1) if class_specific else None,
    )


def _box_feature_dim(cfg: CfgNode, in_channels: int) -> int:
    """Width of what Detectron2's ``FastRCNNConvFCHead`` hands to the box predictor."""
    box_head = cfg.MODEL.ROI_BOX_HEAD
    if box_head.NUM_FC > 0:
        return box_head.FC_DIM
    channels = box_head.CONV_DIM if box_head.NUM_CONV > 0 else in_channels
    return channels * box_head.POOLER_RESOLUTION**2
