"""Short trainings of mask heads on cached RoI features."""

from collections.abc import Callable, Collection, Iterable

import torch
from torch import Tensor

from maskx_d2.data.errors import InputError
from maskx_d2.inference.frozen_detector import FrozenDetector, MaskHead
from maskx_d2.method import (
    BoxSupervision,
    Recipe,
    Schedule,
    TeacherSupervision,
    mask_loss,
    ramp,
)
from maskx_d2.recipes.roi_cache import RoiCache, Rois


def _box_supervision(recipe: Recipe, steps: int) -> BoxSupervision | None:
    """The losses of a recipe, or None if it has none."""
    if not recipe.box_supervision:
        return None
    supervision = BoxSupervision(**recipe.box_supervision, **ramp(steps))
    supervision.check_rois(recipe.train_rois)
    return supervision


def train_mask_head(
    detector: FrozenDetector,
    cache: RoiCache,
    recipe: Recipe,
    *,
    hidden: Collection[int],
    schedule: Schedule,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> MaskHead:
    """
    Train a mask head by a recipe.

    Args:
        detector: the detector that the RoIs were cached of.
        cache: the training images.
        recipe: how the head is built, and what it learns from.
        hidden: indices of classes whose masks are not used.
        schedule: the length of the training.
        seed: of the weights and of the order of the images.
        device: name of a torch device.
        progress: wraps the numbers of the steps, as ``tqdm`` does.

    Returns:
        The mask head, in eval mode.

    Raises:
        InputError: there is no mask to learn from.
        FloatingPointError: the loss is not finite.
    """
    torch.manual_seed(seed)
    head = detector.mask_head(recipe).to(device).train()
    supervision = _box_supervision(recipe, schedule.steps)
    teacher = TeacherSupervision(**recipe.teacher) if recipe.teacher else None
    hidden_classes = torch.tensor(sorted(hidden), dtype=torch.int64)
    trained = [p for p in head.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=schedule.learning_rate, weight_decay=schedule.weight_decay)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule.learning_rate_factor)
    generator = torch.Generator().manual_seed(seed)
    order = _image_order(len(cache), generator)
    for step in progress(range(schedule.steps)):
        chosen = [
            _choose(
                cache.rois(next(order), mirrored=_coin(generator)),
                recipe,
                schedule,
                hidden_classes,
                teacher,
                generator,
            )
            for _ in range(schedule.images)
        ]
        losses = _losses(head, Rois.cat(chosen), supervision, teacher, hidden_classes, device)
        total = sum(losses.values())
        if not torch.isfinite(total):
            values = {name: loss.item() for name, loss in losses.items()}
            raise FloatingPointError(f"the loss of {recipe.title} is not finite at step {step}: {values}")
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        scheduler.step()
    return head.eval()


def _losses(
    head: MaskHead,
    rois: Rois,
    supervision: BoxSupervision | None,
    teacher: TeacherSupervision | None,
    hidden: Tensor,
    device: str,
) -> dict[str, Tensor]:
    with_mask = _has_mask(rois, hidden)
    is_taught = _is_taught(rois, hidden, teacher)
    logits = head(rois.features[head.roi_side].float().to(device), rois.classes.to(device))
    side = logits.shape[-1]
    masked, others = with_mask.nonzero()[:, 0], (~with_mask & ~is_taught).nonzero()[:, 0]
    losses = {"mask": mask_loss(logits[masked.to(device)], (rois.masks[side][masked] / 255).to(device))}
    if teacher is not None:
        taught = is_taught.nonzero()[:, 0]
        losses["teacher"] = teacher.loss(
            logits[taught.to(device)],
            (rois.teacher_masks[side][taught] / 255).to(device),
            rois.teacher_scores[taught].to(device),
        )
    if supervision is not None:
        covering = rois.others[side][others]
        known = (covering >= 0) & ~torch.isin(covering.long(), hidden)
        losses |= supervision.to(device)(
            logits[others.to(device)],
            rois=rois.boxes[others].to(device),
            boxes=rois.true_boxes[others].to(device),
            other_masks=known.to(device),
            colours=(rois.colours[side][others] / 255).to(device),
        )
    return losses


def _has_mask(rois: Rois, hidden: Tensor) -> Tensor:
    """(R,) bool: RoIs whose object has a mask that may be used."""
    return rois.has_mask & ~torch.isin(rois.classes, hidden)


def _is_taught(rois: Rois, hidden: Tensor, teacher: TeacherSupervision | None) -> Tensor:
    """(R,) bool: RoIs whose object is learned by the mask of a teacher."""
    if teacher is None:
        return torch.zeros_like(rois.has_mask)
    return teacher.is_used(rois.teacher_scores) & ~_has_mask(rois, hidden)


def _choose(
    rois: Rois,
    recipe: Recipe,
    schedule: Schedule,
    hidden: Tensor,
    teacher: TeacherSupervision | None,
    generator: torch.Generator,
) -> Rois:
    """RoIs of an image that the recipe learns from, at random."""
    usable = torch.ones(len(rois), dtype=torch.bool)
    if recipe.train_rois != "both":
        usable = rois.is_ground_truth == (recipe.train_rois == "ground_truth")
    if not recipe.box_supervision:
        usable &= _has_mask(rois, hidden) | _is_taught(rois, hidden, teacher)
    places = usable.nonzero()[:, 0]
    return rois[places[torch.randperm(len(places), generator=generator)[: schedule.rois]]]


def _image_order(number: int, generator: torch.Generator):
    """An endless stream of shuffled passes over the images."""
    if number == 0:
        raise InputError("there is no image with an object to train on, expected at least one")
    while True:
        yield from torch.randperm(number, generator=generator).tolist()


def _coin(generator: torch.Generator) -> bool:
    return bool(torch.rand((), generator=generator) < 0.5)
