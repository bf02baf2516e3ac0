"""
Mask predictors: from the mask feature and the class of each RoI to its mask logits.

The original code computes the masks of all K classes for every RoI, ``(N, K, M, M)``, and keeps one of
them. Here the mask weights of each RoI's class are selected first, so that time and memory do not grow
with the number of classes.

N RoIs, K classes, C mask-feature channels, M mask side.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskx_d2.method.class_embeddings import (
    BoxPredictorEmbeddings,
    FixedEmbeddings,
    box_embedding_dim,
)
from maskx_d2.method.weight_transfer import WeightTransfer

_ROIS_AT_ONCE = 64
PREDICTORS = ("transfer", "agnostic", "class_specific")


def class_mask_logits(features: Tensor, class_weights: Tensor) -> Tensor:
    """
    Apply a separate 1x1 convolution with a single output to each RoI.

    Args:
        features: (N, C, M, M) mask features.
        class_weights: (N, C) mask weights; row n belongs to the class of RoI n.

    Returns:
        (N, M, M) mask logits.
    """
    if torch.jit.is_tracing():
        # Slower, but needed for traces that are exported to ONNX, which cannot reshape features of no RoI.
        return torch.einsum("nchw,nc->nhw", features, class_weights)
    by = _by_products if features.is_cuda else _by_matrices
    return by(features, class_weights)


def _by_matrices(features: Tensor, class_weights: Tensor) -> Tensor:
    """See :func:`class_mask_logits`. The fastest on a CPU."""
    num_rois, channels, height, width = features.shape
    # The sizes are spelled out because "-1" is ambiguous for N = 0.
    cells = features.reshape(num_rois, channels, height * width)
    return torch.bmm(class_weights.unsqueeze(1), cells).reshape(num_rois, height, width)


def _by_products(features: Tensor, class_weights: Tensor) -> Tensor:
    """
    See :func:`class_mask_logits`. For a GPU, where the product of a single row and a matrix uses a
    fraction of the memory's bandwidth. In parts, because products take as much memory as features.
    """
    parts = zip(features.split(_ROIS_AT_ONCE), class_weights.split(_ROIS_AT_ONCE), strict=True)
    return torch.cat([(x * weights[:, :, None, None]).sum(1) for x, weights in parts])


class MLPBranch(nn.Module):
    """
    The class-agnostic branch of section 3.4 of the paper: fully connected layers that see the whole
    RoI at once and whose (M, M) map is added to the mask logits.

    In the paper's form, the input is the flattened (C, M, M) feature after the deconvolution. With C =
    256 that is 157 million weights for one layer, so there is a reduced form for small heads: a 1x1
    convolution to a few channels on the feature before the deconvolution, followed by the layers.
    """

    def __init__(
        self,
        in_channels: int,
        in_side: int,
        out_side: int,
        *,
        num_layers: int = 1,
        hidden_dim: int = 1024,
        reduced_channels: int = 0,
    ):
        """
        Args:
            in_channels, in_side: shape of the input feature, (in_channels, in_side, in_side).
            out_side: M, the side of the output map.
            num_layers: 1 (the paper's choice), 2 or 3 linear layers, with ReLU between them.
            hidden_dim: width of the hidden layers.
            reduced_channels: channels of the 1x1 convolution before the layers; 0 for the paper's form.
        """
        super().__init__()
        if num_layers not in (1, 2, 3):
            raise ValueError(f"num_layers of the MLP branch must be 1, 2 or 3, found {num_layers}")
        self.out_side = out_side
        self.reduce = nn.Conv2d(in_channels, reduced_channels, 1) if reduced_channels else None
        in_dim = (reduced_channels or in_channels) * in_side**2
        widths = [in_dim] + [hidden_dim] * (num_layers - 1) + [out_side**2]
        self.layers = nn.ModuleList(nn.Linear(widths[i], widths[i + 1]) for i in range(num_layers))
        for layer in [self.reduce, *self.layers]:
            if layer is not None:
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        nn.init.normal_(self.layers[-1].weight, std=0.001)

    def forward(self, features: Tensor) -> Tensor:
        """(N, in_channels, in_side, in_side) features -> (N, M, M) logits."""
        if self.reduce is not None:
            features = self.reduce(features).relu()
        x = features.flatten(1)
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x).unflatten(1, (self.out_side, self.out_side))


class MaskPredictor(nn.Module):
    """
    The last layer of the mask head. Subclasses define where the mask weights of a class come from. How
    the weights are applied, and the MLP branch, are the same for all.
    """

    def __init__(self, *, mlp_branch: MLPBranch | None = None):
        super().__init__()
        self.mlp_branch = mlp_branch

    @property
    def num_classes(self) -> int:
        """K, or 1 if all classes share their mask weights."""
        raise TypeError(f"{type(self).__name__} does not say how many classes it has")

    def class_weights(self, classes: Tensor) -> Tensor:
        """(N,) class indices -> (N, C) mask weights."""
        raise TypeError(f"{type(self).__name__} does not say where its mask weights come from")

    def class_bias(self, classes: Tensor) -> Tensor | None:
        """(N,) class indices -> (N,) biases of the mask logits, or None where there are none."""
        return None

    def forward(self, features: Tensor, classes: Tensor, trunk_features: Tensor) -> Tensor:
        """
        Args:
            features: (N, C, M, M) mask features.
            classes: (N,) int64, the class whose mask is wanted for each RoI: the matched class in
                training, the predicted class in inference.
            trunk_features: the features before the deconvolution, which the reduced form of the MLP
                branch reads.

        Returns:
            (N, M, M) mask logits.
        """
        logits = class_mask_logits(features, self.class_weights(classes).to(features.dtype))
        bias = self.class_bias(classes)
        if bias is not None:
            logits = logits + bias[:, None, None]
        if self.mlp_branch is not None:
            reduced = self.mlp_branch.reduce is not None
            logits = logits + self.mlp_branch(trunk_features if reduced else features)
        return logits


class ClassSpecificMaskPredictor(MaskPredictor):
    """
    Separate weights and a bias for each class, as in Mask R-CNN: the paper's oracle. Its parameters
    have the names and shapes of the usual 1x1 convolution, so stock checkpoints fit.
    """

    def __init__(self, num_classes: int, in_channels: int, *, mlp_branch: MLPBranch | None = None):
        super().__init__(mlp_branch=mlp_branch)
        self.weight = nn.Parameter(torch.empty(num_classes, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(num_classes))
        nn.init.normal_(self.weight, std=0.001)

    @property
    def num_classes(self) -> int:
        return len(self.weight)

    def class_weights(self, classes: Tensor) -> Tensor:
        return self.weight.flatten(1)[classes]

    def class_bias(self, classes: Tensor) -> Tensor:
        return self.bias[classes]


class ClassAgnosticMaskPredictor(ClassSpecificMaskPredictor):
    """One set of weights for all classes: the paper's baseline."""

    def __init__(self, in_channels: int, *, mlp_branch: MLPBranch | None = None):
        super().__init__(1, in_channels, mlp_branch=mlp_branch)

    def class_weights(self, classes: Tensor) -> Tensor:
        return super().class_weights(torch.zeros_like(classes))

    def class_bias(self, classes: Tensor) -> Tensor:
        return super().class_bias(torch.zeros_like(classes))


class TransferMaskPredictor(MaskPredictor):
    """
    Mask weights predicted from class embeddings by the weight transfer function: Mask^X R-CNN.

    In training, the function T runs on the classes of the RoIs. Dropout on the class embeddings, which
    goes beyond the paper, keeps T from memorising the few classes that it is trained on. In inference, T
    runs once on all K classes, and the result is cached until a weight changes: by an optimiser step,
    ``load_state_dict``, a move to another device or dtype, or a switch of the training mode. Changes that
    torch cannot see are not noticed: after writing to ``parameter.data``, call ``model.eval()``.
    """

    def __init__(
        self,
        class_embeddings: BoxPredictorEmbeddings | FixedEmbeddings,
        transfer: WeightTransfer,
        *,
        embedding_dropout: float = 0.0,
        mlp_branch: MLPBranch | None = None,
    ):
        """
        Args:
            class_embeddings, transfer: the input of T, and T itself.
            embedding_dropout: share of a class embedding that is zeroed in training (the rest is scaled
                up), drawn separately for each class that occurs in a step.
            mlp_branch: see :class:`MaskPredictor`.
        """
        super().__init__(mlp_branch=mlp_branch)
        if not 0 <= embedding_dropout < 1:
            raise ValueError(
                f"embedding_dropout is {embedding_dropout}, expected 0 or more and less than 1"
            )
        self.class_embeddings = class_embeddings
        self.embedding_dropout = embedding_dropout
        self.transfer = transfer
        self._cached_weights: Tensor | None = None
        self._cached_for: tuple = ()

    @property
    def num_classes(self) -> int:
        return len(self.class_embeddings.tensors()[0])

    def class_weights(self, classes: Tensor) -> Tensor:
        if not self.training:
            return self.all_class_weights()[classes]
        # One row for each RoI. With unique() there would be fewer rows, but finding their number would wait
        # for the GPU.
        embeddings = self.class_embeddings(classes)
        if self.embedding_dropout > 0:
            embeddings = F.dropout(embeddings, self.embedding_dropout)[self._first_of_class(classes)]
        return self.transfer(embeddings)

    def _first_of_class(self, classes: Tensor) -> Tensor:
        """(N,) class indices -> (N,) index of the first RoI of the same class."""
        rois = torch.arange(len(classes), device=classes.device)
        first = rois.new_zeros(self.num_classes).scatter_reduce(
            0, classes, rois, reduce="amin", include_self=False
        )
        return first[classes]

    def all_class_weights(self) -> Tensor:
        """(K, C) mask weights of all classes, from the cache if no gradients are needed."""
        sources = (*self.class_embeddings.tensors(), *self.transfer.parameters())
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if torch.is_grad_enabled() or traced or any(t.is_inference() for t in sources):
            return self.transfer(self.class_embeddings())
        weights = ((t.data_ptr(), t._version, t.device, t.dtype) for t in sources)
        state = (_autocast_dtype(sources[0].device.type), *weights)
        if self._cached_weights is None or self._cached_for != state:
            self._cached_weights = self.transfer(self.class_embeddings())
            self._cached_for = state
        return self._cached_weights

    def _drop_cache(self) -> None:
        self._cached_weights = None

    def train(self, mode: bool = True) -> "TransferMaskPredictor":
        self._drop_cache()
        return super().train(mode)

    def _apply(self, fn, *args, **kwargs):
        # Called for every move to another device or dtype, which versions and addresses do not reveal:
        # after .half().float(), changed weights may be at the same address as before.
        self._drop_cache()
        return super()._apply(fn, *args, **kwargs)


def _autocast_dtype(device_type: str) -> torch.dtype | None:
    """The dtype in which autocast makes T compute; T's weights keep theirs."""
    available = torch.amp.is_autocast_available(device_type)
    enabled = available and torch.is_autocast_enabled(device_type)
    return torch.get_autocast_dtype(device_type) if enabled else None


def build_mask_predictor(
    predictor: str = "transfer",
    *,
    num_classes: int,
    in_channels: int,
    mask_side: int,
    trunk_channels: int | None = None,
    class_embedding: str = "cls+box",
    embedding_table: Tensor | None = None,
    box_feature_dim: int = 1024,
    stop_grad: bool = True,
    embedding_dropout: float = 0.0,
    transfer_layers: int = 2,
    transfer_hidden_dim: int = 256,
    transfer_activation: str = "leaky_relu",
    mlp_layers: int = 1,
    mlp_hidden_dim: int = 1024,
    mlp_reduced_channels: int = 0,
) -> MaskPredictor:
    """
    Build one of the three mask predictors. The defaults are the paper's final model.

    Args:
        predictor: ``"transfer"`` (Mask^X R-CNN), ``"agnostic"`` (the paper's baseline) or
            ``"class_specific"`` (its oracle).
        num_classes: K, without the background.
        in_channels: C, channels of the feature after the deconvolution.
        mask_side: M, the side of that feature and of the masks.
        trunk_channels: channels of the feature before the deconvolution, whose side is M / 2;
            C if None.
        class_embedding: what T reads: ``"cls"``, ``"box"``, ``"cls+box"`` or ``"file"``.
        embedding_table: (K, D) fixed embeddings, for ``"file"``.
        box_feature_dim: F, width of the feature that the box predictor reads.
        stop_grad: see :class:`BoxPredictorEmbeddings`.
        embedding_dropout: see :class:`TransferMaskPredictor`.
        transfer_layers, transfer_hidden_dim, transfer_activation: see :class:`WeightTransfer`.
        mlp_layers: 0 for no MLP branch; otherwise, and for ``mlp_hidden_dim`` and
            ``mlp_reduced_channels``, see :class:`MLPBranch`.
    """
    if predictor not in PREDICTORS:
        raise ValueError(f"mask predictor must be one of {PREDICTORS}, found {predictor!r}")
    mlp_branch = None
    if mlp_layers:
        if mlp_reduced_channels:
            channels, side = trunk_channels or in_channels, mask_side // 2
        else:
            channels, side = in_channels, mask_side
        mlp_branch = MLPBranch(
            channels,
            side,
            mask_side,
            num_layers=mlp_layers,
            hidden_dim=mlp_hidden_dim,
            reduced_channels=mlp_reduced_channels,
        )
    if predictor == "agnostic":
        return ClassAgnosticMaskPredictor(in_channels, mlp_branch=mlp_branch)
    if predictor == "class_specific":
        return ClassSpecificMaskPredictor(num_classes, in_channels, mlp_branch=mlp_branch)

    embeddings: BoxPredictorEmbeddings | FixedEmbeddings
    if class_embedding == "file":
        if embedding_table is None or len(embedding_table) != num_classes:
            found = "none" if embedding_table is None else tuple(embedding_table.shape)
            raise ValueError(f"class embedding 'file' needs a table of ({num_classes}, D), found {found}")
        embeddings = FixedEmbeddings(embedding_table)
        embedding_dim = embedding_table.shape[1]
    else:
        embeddings = BoxPredictorEmbeddings(class_embedding, stop_grad=stop_grad)
        embedding_dim = box_embedding_dim(class_embedding, box_feature_dim)
    transfer = WeightTransfer(
        embedding_dim, in_channels, transfer_hidden_dim, transfer_layers, transfer_activation
    )
    return TransferMaskPredictor(
        embeddings, transfer, embedding_dropout=embedding_dropout, mlp_branch=mlp_branch
    )
