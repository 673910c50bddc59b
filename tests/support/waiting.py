"""Waiting for what should become true, instead of for time to pass."""

import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["wait_until"]

_T = TypeVar("_T")

POLL_INTERVAL_S = 0.02


def wait_until(condition: Callable[[], _T], what: str, *, timeout_s: float = 30) -> _T:
    """Return the first truthy value of `condition`; fail the test when there is none in time."""
    give_up_at = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > give_up_at:
            raise AssertionError(f"waited {timeout_s:g} s in vain: {what}")
        time.sleep(POLL_INTERVAL_S)
    return value
