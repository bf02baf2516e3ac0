"""``select_mask_rois``: the RoIs that the mask head is trained on."""

import torch
from detectron2.structures import Instances
from torch import Tensor

from maskx_d2.backends.detectron2.image_field import ImageField
from maskx_d2.method import TeacherSupervision

TRAIN_ROIS = ("proposals", "ground_truth", "both")


def select_mask_rois(
    sampled: list[Instances],
    *,
    num_classes: int,
    include_box_only: bool,
    teacher: TeacherSupervision | None = None,
    train_rois: str = "proposals",
    rois_per_image: int = 0,
) -> list[Instances]:
    """
    Select the RoIs of each image that the mask head is trained on. ``gt_has_mask`` says whether a RoI is
    supervised by a mask, or only by a box.

    Args:
        sampled: the sampled proposals of each image, with ``gt_classes`` and the other fields of their
            matched instances: ``gt_has_mask`` (absent if all have a mask), ``gt_teacher_score`` (absent if
            none has a mask by a teacher) and, unless ``train_rois`` is ``"proposals"``, ``gt_of_image``,
            see :func:`remember_ground_truth`.
        num_classes: K; proposals of other classes are background.
        include_box_only: whether to include RoIs whose instance has no mask.
        teacher: whether to include RoIs whose instance has a mask by a teacher, and which of them.
        train_rois: ``"proposals"`` for the positive proposals of ``sampled``, ``"ground_truth"`` for the
            boxes of the instances (Birodkar et al., ICCV 2021), ``"both"`` for proposals, then boxes.
        rois_per_image: maximum number of RoIs of an image, drawn at random; 0 for all.

    Returns:
        The RoIs of each image, in the order of ``sampled``.
    """
    selected = []
    for rois in sampled:
        if train_rois == "ground_truth":
            rois = rois.gt_of_image.value
        elif train_rois == "both":
            rois = _concatenate(rois, rois.gt_of_image.value)
        learns = (rois.gt_classes >= 0) & (rois.gt_classes < num_classes)
        # An image without annotations has no positive RoIs and no gt_has_mask.
        if not include_box_only and rois.has("gt_has_mask"):
            learns &= has_usable_mask(rois, teacher)
        rois = rois[indices(learns)]
        if 0 < rois_per_image < len(rois):
            rois = rois[torch.randperm(len(rois), device=learns.device)[:rois_per_image]]
        selected.append(rois)
    return selected


def has_usable_mask(instances: Instances, teacher: TeacherSupervision | None) -> Tensor:
    """(N,) bool: instances with ``gt_has_mask``, and those that are learned by the mask of a teacher."""
    return instances.gt_has_mask | is_taught(instances, teacher)


def is_taught(instances: Instances, teacher: TeacherSupervision | None) -> Tensor:
    """(N,) bool: instances without a mask of their own that are learned by that of a teacher."""
    if teacher is None or not instances.has("gt_teacher_score"):
        return torch.zeros_like(instances.gt_has_mask)
    return teacher.is_used(instances.gt_teacher_score) & ~instances.gt_has_mask


def remember_ground_truth(sampled: list[Instances], targets: list[Instances]) -> None:
    """Give the proposals of each image its ground truth as ``gt_of_image``, with the boxes as RoIs."""
    for rois, instances in zip(sampled, targets, strict=True):
        ground_truth = Instances(instances.image_size, **instances.get_fields())
        ground_truth.proposal_boxes = instances.gt_boxes
        rois.gt_of_image = ImageField(ground_truth, len(rois))


def indices(chosen: Tensor) -> Tensor:
    """(N,) bool -> indices. Indexing by bool makes every field of ``Instances`` wait for the GPU."""
    return chosen.nonzero()[:, 0]


def _concatenate(sampled: Instances, ground_truth: Instances) -> Instances:
    """RoIs of one image, with the fields that both have."""
    if len(sampled) == 0 or len(ground_truth) == 0:
        return sampled if len(ground_truth) == 0 else ground_truth
    fields = sampled.get_fields()
    names = [name for name in ground_truth.get_fields() if name in fields]
    return Instances.cat(
        [Instances(i.image_size, **{name: i.get(name) for name in names}) for i in (sampled, ground_truth)]
    )
