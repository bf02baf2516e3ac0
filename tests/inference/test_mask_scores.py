import numpy as np
import pytest

from maskx_d2.inference.mask_scores import ScoreCalibration, calibration_error


def objects(number=3000, seed=0):
    """Scores that are too high, more so for small objects."""
    generator = np.random.default_rng(seed)
    areas = generator.uniform(100, 10_000, number)
    scores = generator.uniform(0.3, 1, number)
    truth = scores**2 * np.where(areas < 3400, 0.7, 0.95)
    ious = (truth + generator.normal(0, 0.05, number)).clip(0, 1)
    return {"scores": scores, "ious": ious, "areas": areas}


def test_calibrated_scores_are_the_measured_iou_of_new_objects():
    calibration = ScoreCalibration.fit(**objects())
    new = objects(seed=1)
    calibrated = calibration(new["scores"], new["areas"])
    assert calibration_error(new["scores"], new["ious"]) > 0.1
    assert calibration_error(calibrated, new["ious"]) < 0.02
    assert calibration.error == pytest.approx(np.abs(calibrated - new["ious"]).mean(), abs=0.01)


def test_a_higher_score_is_never_a_lower_one_after_calibration():
    calibration = ScoreCalibration.fit(**objects())
    scores = np.linspace(0, 1, 200)
    for area in (200.0, 5000.0, 9000.0):
        calibrated = calibration(scores, np.full(200, area))
        assert (np.diff(calibrated) >= 0).all()
        assert 0 <= calibrated.min() <= calibrated.max() <= 1


def test_with_few_objects_sizes_are_not_told_apart():
    assert ScoreCalibration.fit(**objects(number=50)).max_areas == []


def test_a_calibration_in_a_checkpoint_is_read_again():
    calibration = ScoreCalibration.fit(**objects())
    again = ScoreCalibration.of_checkpoint({ScoreCalibration.KEY: calibration.as_dict()})
    new = objects(seed=2)
    np.testing.assert_array_equal(
        again(new["scores"], new["areas"]), calibration(new["scores"], new["areas"])
    )
    assert ScoreCalibration.of_checkpoint({}) is None


@pytest.mark.parametrize(
    "change",
    [
        {"scores": [[0.5, 0.2]], "ious": [[0.1, 0.2]], "max_areas": []},
        {"scores": [[]], "ious": [[]], "max_areas": []},
        {"max_areas": [5.0, 1.0]},
        {"error": float("nan")},
        {"error": "x"},
        {"more": 1},
    ],
)
def test_a_broken_calibration_is_refused(change):
    state = {**ScoreCalibration.fit(**objects()).as_dict(), **change}
    with pytest.raises(ValueError, match=r"mask_score_calibration"):
        ScoreCalibration.of_checkpoint({ScoreCalibration.KEY: state})


def test_the_calibration_error_is_that_of_its_definition():
    scores, ious = np.array([0.15, 0.11, 0.95]), np.array([0.5, 0.3, 0.9])
    assert calibration_error(scores, ious) == pytest.approx(2 / 3 * abs(0.13 - 0.4) + 1 / 3 * 0.05)
