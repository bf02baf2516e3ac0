"""``ImageField``: a value of the whole image, stored as a field of its ``Instances``."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskx_d2.data.errors import InputError


class ImageField:
    """
    One value for all instances of an image, also if there are none. ``Instances`` requires fields of equal
    length and indexes all of them. This field has that length, and indexing does not change its value.
    """

    def __init__(self, value: Any, num_instances: int):
        """
        Args:
            value: a tensor, another structure with ``to``, or None.
            num_instances: length of the field.
        """
        self.value = value
        self._num_instances = num_instances

    def __len__(self) -> int:
        return self._num_instances

    def __getitem__(self, item: slice | Tensor | np.ndarray | Sequence) -> "ImageField":
        if isinstance(item, slice):
            return self.of_length(len(range(len(self))[item]))
        item = torch.as_tensor(item)
        return self.of_length(int(item.count_nonzero()) if item.dtype == torch.bool else len(item))

    def of_length(self, num_instances: int) -> "ImageField":
        """The same value, as a field of other instances of the image."""
        return type(self)(self.value, num_instances)

    def to(self, *args, **kwargs) -> "ImageField":
        value = None if self.value is None else self.value.to(*args, **kwargs)
        return type(self)(value, len(self))

    @staticmethod
    def cat(fields: Sequence["ImageField"]) -> "ImageField":
        """
        For ``Instances.cat``.

        Raises:
            ValueError: the fields are of images with different values, which one field cannot hold.
        """
        first = fields[0]
        for field in fields:
            both = (first.value, field.value)
            are_tensors = all(isinstance(value, Tensor) for value in both)
            if both[0] is not both[1] and not (are_tensors and torch.equal(*both)):
                raise InputError(
                    f"a {type(first).__name__} has one value for all instances of an image, expected only "
                    "instances of images with the same value"
                )
        return first.of_length(sum(len(field) for field in fields))
