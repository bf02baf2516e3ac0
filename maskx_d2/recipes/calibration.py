"""Fits mask scores to the IoU that was measured on hidden classes."""

import numpy as np
from scipy.optimize import isotonic_regression

from maskx_d2.inference.mask_scores import ScoreCalibration
from maskx_d2.recipes.measurement import ObjectQuality

_MIN_OBJECTS = 60  # of a size; with fewer, sizes are not told apart
_NUM_SIZES = 3


def fit_calibration(objects: ObjectQuality) -> ScoreCalibration:
    """
    Fit an isotonic regression of IoU on the expected IoU, for thirds of the objects by size.

    Args:
        objects: masks of classes that were hidden from the mask head.
    """
    max_areas: list[float] = []
    if len(objects.ious) >= _NUM_SIZES * _MIN_OBJECTS:
        shares = np.arange(1, _NUM_SIZES) / _NUM_SIZES
        max_areas = np.quantile(objects.areas, shares).tolist()
    sizes = np.searchsorted(max_areas, objects.areas)
    scores, ious = [], []
    for size in range(len(max_areas) + 1):
        of_size = objects[sizes == size]
        knots = _isotonic(of_size.scores, of_size.ious)
        scores.append(knots[0].tolist())
        ious.append(knots[1].tolist())
    calibration = ScoreCalibration(max_areas, scores, ious, error=0.0)
    error = np.abs(calibration(objects.scores, objects.areas) - objects.ious).mean()
    return ScoreCalibration(max_areas, scores, ious, error=float(error))


def _isotonic(scores: np.ndarray, ious: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ends of the steps of the best ascending function from scores to IoU."""
    order = np.argsort(scores, kind="stable")
    result = isotonic_regression(ious[order])
    ends = np.unique(np.concatenate([result.blocks[:-1], result.blocks[1:] - 1]))
    return scores[order][ends], result.x[ends]


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
