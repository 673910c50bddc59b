"""Work that must not leave helper threads behind."""

import threading

import pytest

from server.models.passing_thread import in_passing_thread


def test_runs_elsewhere_and_the_thread_is_gone() -> None:
    """The result comes back; the thread does not stay."""
    thread = in_passing_thread(threading.current_thread)
    assert thread is not threading.current_thread()
    assert not thread.is_alive()


def test_errors_come_back() -> None:
    """As if it had been called here."""
    with pytest.raises(ZeroDivisionError):
        in_passing_thread(lambda: 1 // 0)
