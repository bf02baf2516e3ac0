"""``TrainingData``: counts of the training data on each side of the class split."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True)
class TrainingData:
    """Counts for A, the classes with masks, and B, those with only boxes. Crowd regions are not counted."""

    num_images: int
    num_classes: tuple[int, int]
    num_objects: tuple[int, int]
    num_masks: int
    """Masks in A; B has none."""

    trained_with_masks: tuple[int, ...]
    """Indices of the classes that have a mask, in order."""

    left_out: Mapping[str, int] = field(default_factory=dict)
    """What training does not use -> how many."""

    num_teacher: int = 0
    """Masks by a teacher, of objects that count as boxes only."""

    trained_by_teacher: tuple[int, ...] = ()
    """Indices of the classes that have only masks by a teacher, in order."""

    @classmethod
    def count(
        cls,
        num_images: int,
        objects: Iterable[tuple[int, bool]],
        class_has_mask: Sequence[bool],
        *,
        left_out: Mapping[str, int] = MappingProxyType({}),
        teacher_classes: Iterable[int] = (),
    ) -> "TrainingData":
        """
        Args:
            num_images: number of images with an object.
            objects: for each object, the index of its class and whether it has a mask.
            class_has_mask: for each class, whether it is in A.
            left_out: see :class:`TrainingData`.
            teacher_classes: for each object with a mask by a teacher, the index of its class.
        """
        num_objects, num_masks = [0] * len(class_has_mask), [0] * len(class_has_mask)
        for class_index, has_mask in objects:
            num_objects[class_index] += 1
            num_masks[class_index] += has_mask and class_has_mask[class_index]
        of_a = sum(n for n, is_in_a in zip(num_objects, class_has_mask, strict=True) if is_in_a)
        num_a, of_teacher = sum(class_has_mask), Counter(teacher_classes)
        return cls(
            num_images=num_images,
            num_classes=(num_a, len(class_has_mask) - num_a),
            num_objects=(of_a, sum(num_objects) - of_a),
            num_masks=sum(num_masks),
            trained_with_masks=tuple(index for index, number in enumerate(num_masks) if number),
            left_out=dict(left_out),
            num_teacher=sum(of_teacher.values()),
            trained_by_teacher=tuple(sorted(i for i in of_teacher if not num_masks[i])),
        )

    def __str__(self) -> str:
        (classes_a, classes_b), (objects_a, objects_b) = self.num_classes, self.num_objects
        parts = [
            f"{self.num_images:,} images",
            f"A: {classes_a:,} classes, {objects_a:,} objects, {self.num_masks:,} with a mask",
        ]
        if classes_b:
            parts.append(f"B, boxes only: {classes_b:,} classes, {objects_b:,} objects")
        if self.num_teacher:
            parts.append(f"masks by a teacher: {self.num_teacher:,}")
        if self.left_out:
            parts.append(f"not used: {', '.join(f'{n:,} {what}' for what, n in self.left_out.items())}")
        return "; ".join(parts)
