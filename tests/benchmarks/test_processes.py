"""Processes of a benchmark: ready when they are, and gone afterwards."""

import os
import sys
from pathlib import Path

import pytest

from benchmarks.processes import Isolated, ServerProcess, free_port
from benchmarks.protocol import Unavailable


class Counter:
    """Something to run elsewhere."""

    def __init__(self, start: int) -> None:
        if start < 0:
            raise ValueError("must not be negative")
        self._value = start

    def add(self, amount: int) -> tuple[int, int]:
        self._value += amount
        return os.getpid(), self._value

    def fail(self) -> None:
        raise KeyError("nothing here")

    def vanish(self) -> None:
        os._exit(3)


def is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_an_isolated_object_keeps_its_state_in_another_process_that_ends_with_it() -> None:
    """Its threads and memory are its own."""
    with Isolated(Counter, 40) as counter:
        pid, value = counter.call("add", 2)
        assert value == 42
        assert pid != os.getpid()
        assert counter.call("add", 1) == (pid, 43)
    assert not is_running(pid)


def test_errors_over_there_are_told_here() -> None:
    """While it is built, while it is called, and when the whole process dies."""
    with pytest.raises(Unavailable, match="must not be negative"), Isolated(Counter, -1):
        pass
    with Isolated(Counter, 0) as counter:
        with pytest.raises(Unavailable, match="KeyError"):
            counter.call("fail")
        assert counter.call("add", 1)[1] == 1
        with pytest.raises(Unavailable, match="ended with code 3"):
            counter.call("vanish")


def test_a_server_is_waited_for_and_ended(tmp_path: Path) -> None:
    """Readiness is a condition, not a time."""
    sign = tmp_path / "ready"
    code = f"import pathlib, time; pathlib.Path({str(sign)!r}).touch(); time.sleep(60)"
    server = ServerProcess("test_server", [sys.executable, "-c", code], sign.exists)
    with server:
        assert sign.exists()
        assert is_running(server.pid)
    assert not is_running(server.pid)


def test_a_server_that_ends_or_does_not_exist_is_unavailable_in_its_own_words() -> None:
    """The reason goes into the results."""
    broken = [sys.executable, "-c", "raise SystemExit('port taken')"]
    with pytest.raises(Unavailable, match="port taken"), ServerProcess("test_broken", broken, lambda: False):
        pass
    with pytest.raises(Unavailable, match="can't be started"):
        ServerProcess("test_missing", ["/nonexistent"], lambda: False).__enter__()


def test_free_ports_can_be_bound() -> None:
    """Two in a row may be equal, but both are usable numbers."""
    assert 1024 <= free_port() <= 65535
