from ...kills import kill_and_compare


def test_runs_that_are_killed_at_random_moments_end_with_the_weights_of_one_that_is_not(tmp_path):
    counts = kill_and_compare("detectron2", 2, tmp_path)
    assert counts["kills"] == 2 and counts["same weights"] >= 1
