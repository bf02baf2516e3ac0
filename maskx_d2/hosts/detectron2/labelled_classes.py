"""``LabelledClasses``: which classes an image's dataset labels."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor


def pack_classes(indices: Iterable[int], num_classes: int) -> np.ndarray:
    """Some of ``num_classes`` classes as bits, (num_classes / 8,) uint8: every image has them."""
    is_labelled = np.zeros(num_classes, dtype=bool)
    is_labelled[list(indices)] = True
    return np.packbits(is_labelled)


def unpack_classes(packed: np.ndarray, num_classes: int) -> Tensor:
    """(num_classes,) bool."""
    return torch.from_numpy(np.unpackbits(packed, count=num_classes).astype(bool))


class LabelledClasses:
    """
    Which of K classes are labelled in an image. As a field of ``Instances``, for which it has the length
    of the others, it says so once for all, and for an image without instances too.
    """

    def __init__(self, is_labelled: Tensor, num_instances: int):
        """
        Args:
            is_labelled: (K,) bool.
            num_instances: its length as a field.
        """
        self.is_labelled = is_labelled
        self._num_instances = num_instances

    def __len__(self) -> int:
        return self._num_instances

    def __getitem__(self, item: slice | Tensor) -> "LabelledClasses":
        if isinstance(item, slice):
            count = len(range(len(self))[item])
        else:
            count = int(item.count_nonzero()) if item.dtype == torch.bool else len(item)
        return self.of_length(count)

    def of_length(self, num_instances: int) -> "LabelledClasses":
        """The same classes as a field of other instances."""
        return LabelledClasses(self.is_labelled, num_instances)

    def to(self, *args, **kwargs) -> "LabelledClasses":
        return LabelledClasses(self.is_labelled.to(*args, **kwargs), len(self))
