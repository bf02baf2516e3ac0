"""Work in threads while the main thread prepares more."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def in_threads(calls: Iterable[tuple[T, Callable[[], object]]], *, num_threads: int) -> Iterator[T]:
    """
    Call functions in threads, a few at a time: no more are taken from ``calls`` than there are threads and
    one.

    Args:
        calls: functions, each with what to yield for it.
        num_threads: how many run at the same time.

    Yields:
        What is given for each function, in order, once the function has returned. If ``calls`` raises an
        error, as in an interruption, the functions before it first return, and then it is raised.

    Raises:
        Exception: what a function or ``calls`` raises.
    """
    iterator, error = iter(calls), None
    running: deque[tuple[T, Future]] = deque()
    threads = ThreadPoolExecutor(num_threads)
    try:
        while True:
            try:
                what, call = next(iterator)
            except StopIteration:
                break
            except BaseException as raised:
                error = raised
                break
            running.append((what, threads.submit(call)))
            if len(running) > num_threads:
                yield _returned(running.popleft())
        while running:
            yield _returned(running.popleft())
    finally:
        threads.shutdown(wait=False, cancel_futures=True)  # not waiting, as in read_ahead
    if error is not None:
        raise error


def _returned(pair: tuple[T, Future]) -> T:
    what, future = pair
    future.result()
    return what
