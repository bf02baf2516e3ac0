"""``select_mask_rois``: the RoIs that the mask branch is trained on."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import project_masks_on_boxes
from torchvision.ops import roi_align

from maskx_d2.data.errors import InputError
from maskx_d2.method import TeacherSupervision

Target = dict[str, Tensor]
TRAIN_ROIS = ("proposals", "ground_truth", "both")


@dataclass(frozen=True)
class MaskRois:
    """R RoIs of an image and the instances that they are matched to."""

    target: Target
    has_mask: Tensor
    """(number of instances of the image,) bool."""

    boxes: Tensor
    """(R, 4)."""

    instances: Tensor
    """(R,) indices of the instances."""

    def __getitem__(self, rois: Tensor) -> "MaskRois":
        return replace(self, boxes=self.boxes[rois], instances=self.instances[rois])

    @property
    def classes(self) -> Tensor:
        """(R,) class indices, without the background."""
        return self.target["labels"][self.instances] - 1

    @property
    def teacher_scores(self) -> Tensor:
        """(R,) scores of the teacher's masks of the instances; 0 for an instance without one."""
        return teacher_scores(self.target)[self.instances]

    @property
    def is_masked(self) -> Tensor:
        """(R,) bool, whether the instance of each RoI has a mask; otherwise it has only a box."""
        return self.has_mask[self.instances]

    @property
    def true_boxes(self) -> Tensor:
        """(R, 4) boxes of the instances."""
        return self.target["boxes"].to(self.boxes)[self.instances]

    def mask_targets(self, side: int) -> Tensor:
        """(R, side, side) targets. All RoIs must have a mask, true or by a teacher."""
        rows = mask_index(self.target)[self.instances]
        return project_masks_on_boxes(self.target["masks"], self.boxes, rows, side)

    def covered_cells(self, side: int) -> Tensor:
        """
        (R, side, side) bool, the cells that masks of the image cover. For RoIs whose instance has no mask,
        these are masks of other instances.
        """
        if len(self.boxes) == 0 or not self.has_mask.any():
            return self.boxes.new_zeros(len(self.boxes), side, side, dtype=torch.bool)
        covered = self.target["masks"][mask_index(self.target)[self.has_mask]].any(0, keepdim=True)
        return average_to_cells(covered.to(self.boxes), self.boxes, side)[:, 0] >= 0.5

    def colours(self, side: int) -> Tensor:
        """(R, 3, side, side) RGB in [0, 1]."""
        return average_to_cells(self.target["image"].to(self.boxes), self.boxes, side)


def select_mask_rois(
    proposals: list[Tensor],
    matched: list[Tensor],
    labels: list[Tensor],
    targets: list[Target],
    *,
    include_box_only: bool,
    teacher: TeacherSupervision | None = None,
    train_rois: str = "proposals",
    rois_per_image: int = 0,
) -> list[MaskRois]:
    """
    Select the RoIs of each image that the mask branch is trained on.

    Args:
        proposals: (P, 4) sampled proposals of each image.
        matched: (P,) indices of their matched instances, for each image.
        labels: (P,) labels of each image, 0 for background.
        targets: the instances of each image.
        include_box_only: whether to include RoIs whose instance has no mask.
        teacher: whether to include RoIs whose instance has a mask by a teacher, and which of them.
        train_rois: ``"proposals"`` for the positive proposals, ``"ground_truth"`` for the boxes of the
            instances (Birodkar et al., ICCV 2021), ``"both"`` for the proposals, then the boxes.
        rois_per_image: maximum number of RoIs of an image, drawn at random; 0 for all.

    Returns:
        The RoIs of each image, in the order of ``proposals``, with their supervision.
    """
    selected = []
    for boxes, instances, of_proposals, target in zip(proposals, matched, labels, targets, strict=True):
        masked = has_mask(target)
        learns = has_usable_mask(target, teacher) | include_box_only
        # In an image without boxes all proposals are background, and matched to nothing.
        chosen = (of_proposals > 0) & learns[instances] if len(learns) > 0 else of_proposals > 0
        chosen = chosen.nonzero()[:, 0]
        boxes, instances = boxes[chosen], instances[chosen]
        if train_rois != "proposals":
            truth = learns.nonzero().flatten()
            true_boxes = target["boxes"].to(boxes)[truth]
            both = train_rois == "both"
            boxes = torch.cat([boxes, true_boxes]) if both else true_boxes
            instances = torch.cat([instances, truth]) if both else truth
        rois = MaskRois(target, masked, boxes, instances)
        if 0 < rois_per_image < len(boxes):
            rois = rois[torch.randperm(len(boxes), device=boxes.device)[:rois_per_image]]
        selected.append(rois)
    return selected


def select_instances(target: Target, instances: Tensor) -> Target:
    """The parts of a target that the mask branch reads, for some of its instances."""
    keys = ("boxes", "labels", "has_mask", "teacher_score", "mask_index")
    selected = {key: target[key][instances] for key in keys if key in target}
    if "masks" in target:
        selected["masks"] = target["masks"] if "mask_index" in target else target["masks"][instances]
    return selected


def average_to_cells(image: Tensor, rois: Tensor, side: int) -> Tensor:
    """(C, H, W), (R, 4) -> (R, C, side, side): means over the cells of each RoI."""
    return roi_align(image[None], [rois], side, aligned=True)


def has_usable_mask(target: Target, teacher: TeacherSupervision | None) -> Tensor:
    """(number of boxes,) bool: instances with a mask, and those that are learned by that of a teacher."""
    return has_mask(target) | is_taught(target, teacher)


def is_taught(target: Target, teacher: TeacherSupervision | None) -> Tensor:
    """(number of boxes,) bool: instances without a mask that are learned by that of a teacher."""
    if teacher is None:
        return torch.zeros(len(target["boxes"]), dtype=torch.bool, device=target["boxes"].device)
    return teacher.is_used(teacher_scores(target))


def teacher_scores(target: Target) -> Tensor:
    """(number of boxes,): the target's own ``teacher_score``; zeros without one."""
    num_boxes = len(target["boxes"])
    if "teacher_score" not in target:
        return torch.zeros(num_boxes, device=target["boxes"].device)
    given = target["teacher_score"]
    if given.shape != (num_boxes,) or "masks" not in target:
        raise InputError(
            f"teacher_score of a target has shape {tuple(given.shape)}, expected ({num_boxes},), and masks"
        )
    return given * ~has_mask(target)


def mask_index(target: Target) -> Tensor:
    """(number of boxes,) rows of ``masks``: the target's own ``mask_index``; without one, all in order."""
    if "mask_index" in target:
        return target["mask_index"]
    return torch.arange(len(target["boxes"]), device=target["boxes"].device)


def has_mask(target: Target) -> Tensor:
    """
    (number of boxes,) bool: the target's own ``has_mask``; without one, whether the target has masks.

    Raises:
        ValueError: there is not exactly one mask, or one ``mask_index``, and one ``has_mask`` for each box.
    """
    num_boxes = len(target["boxes"])
    if "mask_index" in target:
        given = target["mask_index"]
        if given.dtype != torch.int64 or given.shape != (num_boxes,):
            raise InputError(
                f"mask_index of a target is {given.dtype} of shape {tuple(given.shape)}, "
                f"expected torch.int64 of shape ({num_boxes},)"
            )
    elif "masks" in target and len(target["masks"]) != num_boxes:
        raise InputError(
            f"a target has {len(target['masks'])} masks, expected one for each of its {num_boxes} boxes"
        )
    if "has_mask" not in target:
        return torch.full((num_boxes,), "masks" in target, device=target["boxes"].device)
    given = target["has_mask"]
    if given.dtype != torch.bool or given.shape != (num_boxes,):
        raise InputError(
            f"has_mask of a target is {given.dtype} of shape {tuple(given.shape)}, "
            f"expected torch.bool of shape ({num_boxes},)"
        )
    if "masks" not in target and given.any():
        raise InputError("a target has has_mask, but no masks, expected masks where has_mask is true")
    return given
