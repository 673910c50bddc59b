"""Contenders that take no time and say what a test wants."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from benchmarks.protocol import Outcome, Timed
from benchmarks.workload import Request

__all__ = ["FakeContender", "SilentWatcher"]


class FakeContender:
    """Takes `seconds` a run, on paper; every logit is `logit`; fails in its run number `fails_in`."""

    def __init__(
        self,
        name: str,
        seconds: float = 1.0,
        *,
        logit: float = 0.5,
        fails_in: int | None = None,
        journal: list[str] | None = None,
    ) -> None:
        self.name = name
        self.what = f"the fake {name}"
        self.entered = False
        self._seconds = seconds
        self._logit = logit
        self._fails_in = fails_in
        self._runs = 0
        self._journal = journal if journal is not None else []

    def __enter__(self) -> Self:
        self.entered = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.entered = False

    def score(self, requests: Sequence[Request]) -> Outcome:
        if self._runs == self._fails_in:
            raise RuntimeError("out of paper")
        self._runs += 1
        self._journal.append(self.name)
        return Outcome(self._seconds / self._runs, [[self._logit] * len(r.documents) for r in requests])


class SilentWatcher:
    """Hears everything, says nothing."""

    def doing(self, what: str) -> None: ...

    def ran(self, timed: Timed) -> None: ...
