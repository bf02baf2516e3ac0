"""``LabelledClasses``: which classes an image's dataset labels."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from maskx_d2.backends.detectron2.image_field import ImageField


def pack_classes(indices: Iterable[int], num_classes: int) -> np.ndarray:
    """Some of ``num_classes`` classes as bits, (num_classes / 8,) uint8, because every image has them."""
    is_labelled = np.zeros(num_classes, dtype=bool)
    is_labelled[list(indices)] = True
    return np.packbits(is_labelled)


def unpack_classes(packed: np.ndarray, num_classes: int) -> Tensor:
    """The inverse of :func:`pack_classes`, (num_classes,) bool."""
    return torch.from_numpy(np.unpackbits(packed, count=num_classes).astype(bool))


class LabelledClasses(ImageField):
    """Which of K classes are labelled in an image, as a field of its ``Instances``."""

    def __init__(self, is_labelled: Tensor, num_instances: int):
        """
        Args:
            is_labelled: (K,) bool.
            num_instances: length of the field.
        """
        super().__init__(is_labelled, num_instances)

    @property
    def is_labelled(self) -> Tensor:
        """(K,) bool."""
        return self.value
