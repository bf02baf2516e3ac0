import pytest
import torch
from detectron2.layers import paste_masks_in_image

from maskx_d2.backends.detectron2 import mask_pasting
from maskx_d2.backends.detectron2.mask_pasting import masks_as_rle
from maskx_d2.data.rle import encode

from ...largest_tensor import LargestTensor
from ..boxes_to_paste import BOXES, HEIGHT, WIDTH, drawn


def expected_rles(masks, boxes):
    return [encode(mask) for mask in paste_masks_in_image(masks, boxes, (HEIGHT, WIDTH)).numpy()]


@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES)
def test_the_masks_are_those_that_detectron2_pastes(box):
    masks = torch.rand(4, 28, 28)
    boxes = torch.tensor([box] * 4)
    assert masks_as_rle(masks, boxes, (HEIGHT, WIDTH)) == expected_rles(masks, boxes)


@pytest.mark.parametrize("at_once", [1, 7, 1000])
def test_the_masks_of_many_boxes_are_those_that_detectron2_pastes(at_once, monkeypatch):
    monkeypatch.setattr(mask_pasting, "_PIXELS_AT_ONCE", at_once * HEIGHT * WIDTH)
    masks, boxes = drawn(200, torch.Generator().manual_seed(0))
    assert masks_as_rle(masks, boxes, (HEIGHT, WIDTH)) == expected_rles(masks, boxes)
    assert masks_as_rle(masks[:0], boxes[:0], (HEIGHT, WIDTH)) == []


def test_memory_does_not_grow_with_the_number_of_boxes(monkeypatch):
    monkeypatch.setattr(mask_pasting, "_PIXELS_AT_ONCE", 4 * 100 * 100)
    sizes = []
    for number in (4, 80):
        boxes = torch.tensor([[20.0, 20.0, 80.0, 80.0]] * number)
        with LargestTensor() as largest:
            masks_as_rle(torch.rand(number, 28, 28), boxes, (100, 100))
        sizes.append(largest.numel)
    assert sizes[0] <= 4 * 100 * 100
    assert sizes[1] <= max(sizes[0], 80 * 28 * 28)  # the masks themselves
