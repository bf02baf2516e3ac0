"""Masks in their boxes -> RLE of the image's size, a few masks at a time."""

from detectron2.layers import paste_masks_in_image
from torch import Tensor

from maskx_d2.data.rle import encode_part

_PIXELS_AT_ONCE = 2**24  # of all masks that are pasted together; on a GPU each takes 13 bytes


def masks_as_rle(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[dict]:
    """
    The masks that Detectron2's ``paste_masks_in_image`` makes, but a few at a time. There, 100 masks of an
    image of 12 megapixels take 1.2 GB.

    Args:
        masks: (N, M, M) probabilities.
        boxes: (N, 4), x0, y0, x1, y1 in pixels of the image.
        size: height and width of the image.

    Returns:
        Compressed RLE of the pixels of 0.5 and above.
    """
    height, width = size
    at_once = max(1, _PIXELS_AT_ONCE // (height * width))
    found = []
    for some_masks, some_boxes in zip(masks.split(at_once), boxes.split(at_once), strict=True):
        pasted = paste_masks_in_image(some_masks, some_boxes, size).cpu().numpy()
        for mask, (x0, y0, x1, y1) in zip(pasted, some_boxes.tolist(), strict=True):
            # Interpolation reaches less than a pixel beyond the box.
            left, top = max(int(x0) - 1, 0), max(int(y0) - 1, 0)
            part = mask[top : max(int(y1) + 2, 0), left : max(int(x1) + 2, 0)]
            found.append(encode_part(part, left=left, top=top, height=height, width=width))
    return found
