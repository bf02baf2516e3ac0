"""``ScoreCalibration``: turns the expected IoU of a mask into the IoU that was measured for such masks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from maskx_d2.data.errors import InputError


@dataclass(frozen=True)
class ScoreCalibration:
    """
    Piecewise linear functions from :func:`maskx_d2.method.expected_iou` to IoU, one for each size of
    object. :func:`maskx_d2.recipes.calibration.fit_calibration` fits them.
    """

    max_areas: Sequence[float]
    """The largest area of a box in pixels for each size but the last, ascending."""

    scores: Sequence[Sequence[float]]
    """For each size, ascending scores."""

    ious: Sequence[Sequence[float]]
    """For each size, the IoU at these scores."""

    error: float
    """Mean absolute difference between calibrated scores and IoU where it was fitted."""

    KEY = "mask_score_calibration"
    """Key in a checkpoint."""

    def __post_init__(self) -> None:
        areas = list(self.max_areas)
        numbers = [*areas, self.error, *(v for part in (*self.scores, *self.ious) for v in part)]
        if not all(isinstance(v, int | float) and np.isfinite(v) for v in numbers) or areas != sorted(
            areas
        ):
            raise InputError(f"{self.KEY} has values that are not numbers in order")
        sizes = [len(areas) + 1, len(self.scores), len(self.ious)]
        pairs = list(zip(self.scores, self.ious, strict=False))
        if len(set(sizes)) > 1 or not all(len(s) == len(i) > 0 and list(s) == sorted(s) for s, i in pairs):
            raise InputError(f"{self.KEY} has {sizes} sizes, expected ascending scores and IoU for each")

    @classmethod
    def of_checkpoint(cls, content: Mapping) -> "ScoreCalibration | None":
        """
        Args:
            content: of a checkpoint.

        Returns:
            The calibration in it, or None.

        Raises:
            InputError: it is not in the form of :meth:`as_dict`.
        """
        state = content.get(cls.KEY)
        if state is None:
            return None
        if not isinstance(state, Mapping) or state.keys() != set(cls.__dataclass_fields__):
            raise InputError(f"{cls.KEY} of the checkpoint is not in the form that this project writes")
        return cls(**state)

    def as_dict(self) -> dict:
        """Plain values for a checkpoint."""
        return {
            "max_areas": list(map(float, self.max_areas)),
            "scores": [list(map(float, part)) for part in self.scores],
            "ious": [list(map(float, part)) for part in self.ious],
            "error": float(self.error),
        }

    def __call__(self, scores: np.ndarray, areas: np.ndarray) -> np.ndarray:
        """
        Args:
            scores: (N,) expected IoU.
            areas: (N,) areas of the boxes in pixels.

        Returns:
            (N,) calibrated scores.
        """
        sizes = np.searchsorted(self.max_areas, areas)
        calibrated = np.empty(len(scores))
        for size in range(len(self.scores)):
            of_size = sizes == size
            calibrated[of_size] = np.interp(np.asarray(scores)[of_size], self.scores[size], self.ious[size])
        return calibrated
