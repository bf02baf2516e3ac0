import pickle

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances

from maskx_d2.backends.detectron2.partial_bit_masks import PartialBitMasks

from ...largest_tensor import LargestTensor

HEIGHT, WIDTH = 30, 40


def some_masks(index=(1, -1, 0, 2)):
    """The same as this project and as Detectron2 hold it; the second of three masks is empty."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(3, HEIGHT // 5, WIDTH // 5, generator=generator) > 0.5
    masks = masks.repeat_interleave(5, 1).repeat_interleave(5, 2)
    masks[1] = False
    whole = torch.stack([masks[i] if i >= 0 else torch.zeros(HEIGHT, WIDTH).bool() for i in index])
    return PartialBitMasks(masks, torch.tensor(index)), BitMasks(whole)


def boxes(count):
    generator = torch.Generator().manual_seed(1)
    corner = 20 * torch.rand(count, 2, generator=generator)
    return torch.cat([corner, corner + 1 + 15 * torch.rand(count, 2, generator=generator)], 1)


def assert_same(found, expected):
    assert len(found) == len(expected) and found.image_size == expected.image_size
    assert torch.equal(found.tensor, expected.tensor)
    assert torch.equal(found.nonempty(), expected.nonempty())
    assert torch.equal(found.get_bounding_boxes().tensor, expected.get_bounding_boxes().tensor)
    rois = boxes(len(expected))
    assert torch.equal(found.crop_and_resize(rois, 7), expected.crop_and_resize(rois, 7))


@pytest.mark.parametrize(
    "item",
    [
        slice(None),
        slice(1, 3),
        2,
        -1,
        [3, 0],
        np.array([1, 1, 2]),
        torch.tensor([2, 2, 0, 1, 3, 2]),
        torch.tensor([True, False, False, True]),
        torch.zeros(0, dtype=torch.int64),
    ],
    ids=str,
)
def test_whatever_is_picked_is_what_detectron2_picks(item):
    ours, stock = some_masks()
    assert_same(ours[item], stock[item])


def test_without_an_index_there_is_a_mask_each_and_without_masks_there_is_none():
    ours, stock = some_masks((0, 1, 2))
    assert_same(PartialBitMasks(ours.masks), stock)
    none = PartialBitMasks(torch.zeros(0, HEIGHT, WIDTH), torch.tensor([-1, -1]))
    assert_same(none, BitMasks(torch.zeros(2, HEIGHT, WIDTH)))


def test_joined_moved_and_sent_to_another_process_they_are_the_same():
    ours, stock = some_masks()
    parts, expected = (ours[[0, 1]], ours[[2, 1, 3]]), BitMasks.cat([stock[[0, 1]], stock[[2, 1, 3]]])
    joined = PartialBitMasks.cat(parts)
    assert_same(joined, expected)
    assert joined.masks is ours.masks
    others = PartialBitMasks(ours.masks.flip(0), torch.tensor([-1, 2]))
    assert_same(PartialBitMasks.cat([ours, others]), BitMasks.cat([stock, BitMasks(others.tensor)]))
    assert_same(pickle.loads(pickle.dumps(ours)), stock)
    assert_same(ours.to("cpu"), stock)
    assert str(ours.to("meta").device) == "meta"


def test_as_a_field_of_instances():
    ours, stock = some_masks()
    first = Instances((HEIGHT, WIDTH), gt_masks=ours, gt_boxes=Boxes(boxes(4)))
    joined = Instances.cat([first[1:], first.to("cpu")[torch.tensor([3])]])
    assert_same(joined.gt_masks, stock[[1, 2, 3, 3]])


def test_another_number_of_boxes_is_an_error():
    with pytest.raises(ValueError, match="there are 3 boxes, expected one for each of 4 masks"):
        some_masks()[0].crop_and_resize(boxes(3), 7)


def test_picking_and_cropping_many_rois_copies_no_mask():
    ours, _ = some_masks()
    with LargestTensor() as largest:
        ours[torch.randint(4, (500,))].crop_and_resize(boxes(500), 2)
    assert largest.numel <= 3 * HEIGHT * WIDTH < 500 * HEIGHT * WIDTH
