import numpy as np
import pytest
import torch
from detectron2.structures import Instances

from maskx_d2.backends.detectron2.labelled_classes import LabelledClasses, pack_classes, unpack_classes

IS_LABELLED = torch.tensor([True, False, True])


@pytest.mark.parametrize(
    "item",
    [
        torch.tensor([0, 3, 3]),
        torch.tensor([], dtype=torch.int64),
        torch.tensor([True, False, True, True, False]),
        slice(1, 4),
        2,
        np.array([4, 1]),
        np.array([True, False, False, False, True]),
        [0, 2, 2],
        [False, True, False, False, False],
        [],
    ],
)
def test_as_a_field_of_instances_it_has_their_length(item):
    instances = Instances((8, 8))
    instances.gt_classes = torch.arange(5)
    instances.gt_labelled_classes = LabelledClasses(IS_LABELLED, 5)
    if isinstance(item, list) and not item:
        instances.remove("gt_classes")  # a tensor takes no empty list
        assert len(instances[item]) == 0
        return
    picked = instances[item].to("cpu")
    assert len(picked.gt_labelled_classes) == len(picked.gt_classes) == len(picked)
    assert torch.equal(picked.gt_labelled_classes.is_labelled, IS_LABELLED)


def test_instances_that_agree_in_it_can_be_put_together():
    def labelled(is_labelled, count):
        return Instances(
            (8, 8), gt_classes=torch.arange(count), gt_labelled_classes=LabelledClasses(is_labelled, count)
        )

    both = Instances.cat([labelled(IS_LABELLED, 2), labelled(IS_LABELLED.clone(), 3)])
    assert len(both) == len(both.gt_labelled_classes) == 5
    assert torch.equal(both.gt_labelled_classes.is_labelled, IS_LABELLED)
    with pytest.raises(ValueError, match=r"LabelledClasses has one value for all instances of an image"):
        Instances.cat([labelled(IS_LABELLED, 2), labelled(~IS_LABELLED, 3)])


def test_it_can_be_put_on_no_instances_and_moved():
    none = LabelledClasses(IS_LABELLED, 5).of_length(0)
    assert len(none) == 0 and torch.equal(none.is_labelled, IS_LABELLED)
    assert none.to("meta").is_labelled.device.type == "meta"


@pytest.mark.parametrize("num_classes", [1, 8, 13, 3001])
def test_packed_classes_are_bits_and_come_back(num_classes):
    indices = range(0, num_classes, 3)
    packed = pack_classes(indices, num_classes)
    assert packed.nbytes == -(-num_classes // 8)
    is_labelled = unpack_classes(packed, num_classes)
    assert is_labelled.shape == (num_classes,) and is_labelled.nonzero()[:, 0].tolist() == list(indices)
