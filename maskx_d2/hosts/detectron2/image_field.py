"""``ImageField``: what belongs to an image as a whole, as a field of its ``Instances``."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class ImageField:
    """
    One value for all instances of an image, and for none too. ``Instances`` wants fields of one length and
    picks instances out of all of them: this one has the length, and stays what it is.
    """

    def __init__(self, value: Any, num_instances: int):
        """
        Args:
            value: a tensor, another structure that has ``to``, or None.
            num_instances: its length as a field.
        """
        self.value = value
        self._num_instances = num_instances

    def __len__(self) -> int:
        return self._num_instances

    def __getitem__(self, item: slice | Tensor) -> "ImageField":
        if isinstance(item, slice):
            count = len(range(len(self))[item])
        else:
            count = int(item.count_nonzero()) if item.dtype == torch.bool else len(item)
        return self.of_length(count)

    def of_length(self, num_instances: int) -> "ImageField":
        """The same as a field of other instances of the image."""
        return type(self)(self.value, num_instances)

    def to(self, *args, **kwargs) -> "ImageField":
        value = None if self.value is None else self.value.to(*args, **kwargs)
        return type(self)(value, len(self))

    @staticmethod
    def cat(fields: Sequence["ImageField"]) -> "ImageField":
        """For ``Instances.cat`` of instances of one image."""
        return fields[0].of_length(sum(len(field) for field in fields))
