import pytest
import torch
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from waits import Waits

from maskx_d2.backends.torchvision.mask_pasting import PastingTransform, masks_as_rle
from maskx_d2.data.rle import encode

from ...largest_tensor import LargestTensor
from ..boxes_to_paste import BOXES, HEIGHT, WIDTH, drawn


def expected_rles(masks, boxes):
    pasted = paste_masks_in_image(masks.unsqueeze(1), boxes, (HEIGHT, WIDTH))
    return [encode(mask) for mask in (pasted[:, 0] > 0.5).numpy()]


@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES)
def test_the_masks_are_those_that_torchvision_pastes(box):
    masks = torch.rand(4, 28, 28)
    boxes = torch.tensor([box] * 4)
    assert masks_as_rle(masks, boxes, (HEIGHT, WIDTH)) == expected_rles(masks, boxes)


def test_the_masks_of_many_boxes_are_those_that_torchvision_pastes():
    masks, boxes = drawn(200, torch.Generator().manual_seed(0))
    assert masks_as_rle(masks, boxes, (HEIGHT, WIDTH)) == expected_rles(masks, boxes)
    assert masks_as_rle(masks[:0], boxes[:0], (HEIGHT, WIDTH)) == []


@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES)
def test_the_transform_pastes_as_torchvisions_and_waits_for_a_gpu_once(box):
    theirs = GeneralizedRCNNTransform(50, 100, [0.5] * 3, [0.5] * 3).eval()
    ours = PastingTransform.like(theirs)
    sizes = [(HEIGHT // 2, WIDTH // 2)], [(HEIGHT, WIDTH)]

    def found():
        return [{"boxes": torch.tensor([box] * 3) / 2, "masks": masks.clone()}]

    masks = torch.rand(3, 1, 28, 28)
    (expected,) = theirs.postprocess(found(), *sizes)
    with Waits() as waits:
        (pasted,) = ours.postprocess(found(), *sizes)
    assert torch.equal(pasted["masks"], expected["masks"])
    assert torch.equal(pasted["boxes"], expected["boxes"])
    assert waits.counts == {"tolist": 1}


def test_memory_grows_with_the_area_of_a_box_and_not_with_their_number_or_the_image():
    sizes = []
    for number, size in ((1, (100, 100)), (50, (100, 100)), (50, (4000, 4000))):
        with LargestTensor() as largest:
            masks_as_rle(
                torch.rand(number, 28, 28), torch.tensor([[20.0, 20.0, 80.0, 80.0]] * number), size
            )
        sizes.append(largest.numel)
    assert sizes[0] < 1.3 * 60 * 60  # with the padding of the mask
    assert sizes[2] == sizes[1] <= max(sizes[0], 50 * 30 * 30)  # the padded masks themselves
