"""Class embeddings: one vector for each class, from the box predictor's weights or from a fixed table."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

EMBEDDING_KINDS = ("cls", "box", "cls+box")


class BoxPredictorWeights(NamedTuple):
    """The rows of a box predictor that belong to the K foreground classes; F is its feature width."""

    cls: Tensor
    """(K, F) classifier weights, without the row of the background, which is not a class."""

    box: Tensor | None
    """(K, 4F) regression weights, the four rows of a class concatenated; None if class-agnostic."""


def box_embedding_dim(kind: str, feature_dim: int) -> int:
    """Width D of the embeddings that :class:`BoxPredictorEmbeddings` makes from F = ``feature_dim``."""
    _check_kind(kind)
    return {"cls": 1, "box": 4, "cls+box": 5}[kind] * feature_dim


class BoxPredictorEmbeddings(nn.Module):
    """
    The embedding of a class is its row of weights in the box predictor (``w_det``, section 3.1 of
    the paper): of the classifier (``cls``), of the regressor (``box``), or of both (``cls+box``,
    the paper's choice).

    The weights stay in the box predictor: ``connect`` says where to read them.
    """

    def __init__(self, kind: str = "cls+box", *, stop_grad: bool = True):
        """
        Args:
            kind: ``"cls"`` (D = F), ``"box"`` (D = 4F) or ``"cls+box"`` (D = 5F).
            stop_grad: whether the mask loss leaves the box predictor alone (section 3.2). Without
                it, end-to-end training pulls the embeddings of classes with masks away from those
                of the others.
        """
        super().__init__()
        _check_kind(kind)
        self.kind = kind
        self.stop_grad = stop_grad
        self._read_weights: Callable[[], BoxPredictorWeights] | None = None

    def connect(self, read_weights: Callable[[], BoxPredictorWeights]) -> None:
        """
        Args:
            read_weights: returns the box predictor's current weights. To survive ``copy.deepcopy`` of
                the model, it must be a bound method or a ``functools.partial``, not a lambda.
        """
        self._read_weights = read_weights

    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that the embeddings are computed from."""
        if self._read_weights is None:
            raise ValueError(
                f"class embeddings of kind {self.kind!r} are read from a box predictor, "
                "and none is connected"
            )
        weights = self._read_weights()
        if self.kind == "cls":
            return (weights.cls,)
        if weights.box is None:
            raise ValueError(
                f"class embeddings of kind {self.kind!r} need class-specific box regression, "
                "and the box predictor's regression is class-agnostic"
            )
        return (weights.box,) if self.kind == "box" else (weights.cls, weights.box)

    def forward(self, classes: Tensor | None = None) -> Tensor:
        """
        Args:
            classes: (U,) class indices; None means all K in order.

        Returns:
            (U, D) or (K, D) embeddings.
        """
        rows = [t if classes is None else t[classes] for t in self.tensors()]
        embeddings = rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)
        return embeddings.detach() if self.stop_grad else embeddings

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}, stop_grad={self.stop_grad}"


class FixedEmbeddings(nn.Module):
    """Class embeddings from a table that is never trained: word vectors, random vectors, ..."""

    def __init__(self, table: Tensor):
        """
        Args:
            table: (K, D) floating-point embeddings, class by class.
        """
        super().__init__()
        if table.ndim != 2 or not table.is_floating_point():
            raise ValueError(
                f"a class embedding table must be a (K, D) floating-point tensor, "
                f"found {table.dtype} of shape {tuple(table.shape)}"
            )
        self.register_buffer("table", table.clone())

    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that the embeddings are computed from."""
        return (self.table,)

    def forward(self, classes: Tensor | None = None) -> Tensor:
        """See :meth:`BoxPredictorEmbeddings.forward`."""
        return self.table if classes is None else self.table[classes]

    def extra_repr(self) -> str:
        return "num_classes={}, dim={}".format(*self.table.shape)


def _check_kind(kind: str) -> None:
    if kind not in EMBEDDING_KINDS:
        raise ValueError(f"kind of class embedding must be one of {EMBEDDING_KINDS}, found {kind!r}")
