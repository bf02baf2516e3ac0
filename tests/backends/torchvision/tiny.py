"""Small models, images and targets for the tests of the torchvision backend."""

import torch

from maskx_d2.backends.torchvision import maskx_rcnn_resnet_fpn

NUM_CLASSES = 4  # without the background
SIDE = 64
MODEL = {
    "depth": 18,
    "norm": "GN",
    "fpn_channels": 16,
    "anchor_sizes": [[16], [32], [48], [64], [96]],
    "anchor_aspect_ratios": [1.0],
    "box_head_dim": 12,
    "mask_head_channels": [8, 8],
    "transfer_hidden_dim": 8,
    "mlp_reduced_channels": 4,
    "min_size": SIDE,
    "max_size": SIDE,
    "rpn_post_nms_top_n_train": 40,
    "rpn_post_nms_top_n_test": 20,
    "box_batch_size_per_image": 16,
    "box_positive_fraction": 0.5,
}


def build(seed=0, **options):
    torch.manual_seed(seed)
    return maskx_rcnn_resnet_fpn(**{**MODEL, "num_classes": NUM_CLASSES + 1, **options})


def images(count=2, side=SIDE):
    generator = torch.Generator().manual_seed(7)
    return [torch.rand(3, side, side, generator=generator) for _ in range(count)]


def target(labels, has_mask=None, mask_value=None, side=SIDE):
    """Objects in an image: distinct boxes, and in each a disk, or ``mask_value`` if it has no mask."""
    count = len(labels)
    offset = 6.0 * torch.arange(count)
    boxes = torch.stack([2 + offset, 3 + offset / 2, 34 + offset, 38 + offset / 2], 1).clamp(max=side)
    y, x = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")
    masks = torch.zeros(count, side, side, dtype=torch.uint8)
    for mask, box in zip(masks, boxes, strict=True):
        mask[(x - box[[0, 2]].mean()) ** 2 + (y - box[[1, 3]].mean()) ** 2 < 14**2] = 1
    result = {"boxes": boxes, "labels": torch.tensor(labels, dtype=torch.int64), "masks": masks}
    if has_mask is not None:
        result["has_mask"] = torch.tensor(has_mask, dtype=torch.bool)
        if mask_value is not None:
            masks[~result["has_mask"]] = mask_value
    return result


def masks_of_boxes(target):
    """(number of boxes, H, W): the masks of all boxes; empty for those without one."""
    masks, index = target["masks"], target["mask_index"]
    of_boxes = torch.zeros(len(index), *masks.shape[1:], dtype=masks.dtype)
    of_boxes[index >= 0] = masks[index[index >= 0]]
    return of_boxes


def losses(model, targets, seed=0, inputs=None):
    """The losses of a training step with the given seed for the sampling of RoIs."""
    model.train()
    torch.manual_seed(seed)
    return model(images(len(targets)) if inputs is None else inputs, targets)


def gradients(model, loss):
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
