import threading

import pytest

from maskx_d2.runtime.threads import in_threads


def test_functions_run_at_the_same_time_and_come_back_in_order():
    both = threading.Barrier(2, timeout=10)
    assert list(in_threads([(i, both.wait) for i in range(6)], num_threads=2)) == list(range(6))


def test_no_more_functions_are_taken_than_threads_and_one():
    taken = []

    def calls():
        for i in range(10):
            taken.append(i)
            yield i, lambda: None

    for i in in_threads(calls(), num_threads=2):
        assert len(taken) <= i + 3


def test_what_was_begun_before_an_interruption_comes_back_first():
    done = []

    def calls():
        yield 1, lambda: done.append(1)
        yield 2, lambda: done.append(2)
        raise KeyboardInterrupt

    come_back = []
    with pytest.raises(KeyboardInterrupt):
        for i in in_threads(calls(), num_threads=2):
            come_back.append(i)
    assert come_back == [1, 2] and sorted(done) == [1, 2]


def test_generators_that_are_left_behind_do_not_wait_for_their_threads():
    """They may be closed by the garbage collector while another thread is being started."""
    let_go = threading.Event()
    left = in_threads([(1, lambda: None), (2, let_go.wait), (3, let_go.wait)], num_threads=1)
    assert next(left) == 1
    closing = threading.Thread(target=left.close)
    closing.start()
    closing.join(timeout=10)
    assert not closing.is_alive()
    let_go.set()


def test_the_error_of_a_function_is_raised():
    def fails():
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        list(in_threads([(1, lambda: None), (2, fails)], num_threads=2))
