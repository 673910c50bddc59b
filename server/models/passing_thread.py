"""Work that leaves no helper threads behind."""

import threading
from collections.abc import Callable
from typing import TypeVar

__all__ = ["in_passing_thread"]

T = TypeVar("T")


def in_passing_thread(call: Callable[[], T]) -> T:
    """Call on a thread that ends afterwards, and return or raise what it does.

    OpenMP gives every thread that computes helpers of its own, and they stay as long as it does.
    Once there are more of them than cores, libgomp no longer lets them wait awake between two
    pieces of work, and waking them costs some 50 microseconds each time: a sixth of the speed of
    a small model. So the device's thread must be the only one that has helpers, and loading and
    warming up happen on threads that take theirs along.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    # A daemon: Ctrl-C ends a process that is loading.
    thread = threading.Thread(target=run, name="passing", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
