"""``ScoreCalibration``: turns the score of a mask into the IoU that was measured for such masks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from maskx_d2.data.errors import InputError

_MIN_OBJECTS = 60  # of a size; with fewer, sizes are not told apart
_NUM_SIZES = 3


@dataclass(frozen=True)
class ScoreCalibration:
    """
    Piecewise linear functions from a mask score, such as :func:`maskx_d2.method.expected_iou`, to IoU, one
    for each size of object.
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
    def fit(cls, scores: np.ndarray, ious: np.ndarray, areas: np.ndarray) -> "ScoreCalibration":
        """
        Fit an isotonic regression of IoU on the scores, for thirds of the objects by size.

        Args:
            scores, ious, areas: (N,) of masks that a model has not learned from: mask scores, IoU with the
                true masks, and areas of the boxes in pixels.
        """
        max_areas: list[float] = []
        if len(ious) >= _NUM_SIZES * _MIN_OBJECTS:
            max_areas = np.quantile(areas, np.arange(1, _NUM_SIZES) / _NUM_SIZES).tolist()
        sizes = np.searchsorted(max_areas, areas)
        of_sizes = [sizes == size for size in range(len(max_areas) + 1)]
        steps = [_isotonic(scores[of_size], ious[of_size]) for of_size in of_sizes]
        fitted = cls(max_areas, [s.tolist() for s, _ in steps], [i.tolist() for _, i in steps], error=0.0)
        return replace(fitted, error=float(np.abs(fitted(scores, areas) - ious).mean()))

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


def calibration_error(scores: np.ndarray, ious: np.ndarray, *, num_bins: int = 10) -> float:
    """
    The expected calibration error: the mean difference between mean score and mean IoU of objects in bins
    of equal width by score, weighted by their number.
    """
    bins = np.minimum((scores * num_bins).astype(int), num_bins - 1)
    error = 0.0
    for number in np.unique(bins):
        in_bin = bins == number
        error += in_bin.mean() * abs(scores[in_bin].mean() - ious[in_bin].mean())
    return float(error)


def _isotonic(scores: np.ndarray, ious: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ends of the steps of the best ascending function from scores to IoU."""
    from scipy.optimize import isotonic_regression

    order = np.argsort(scores, kind="stable")
    result = isotonic_regression(ious[order])
    ends = np.unique(np.concatenate([result.blocks[:-1], result.blocks[1:] - 1]))
    return scores[order][ends], result.x[ends]
