"""Parts that several contenders share."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from benchmarks.processes import Isolated
from benchmarks.protocol import Outcome, Rows
from benchmarks.workload import Request

__all__ = ["CONCURRENT_CLIENTS", "InProcess", "Served", "drive"]

CONCURRENT_CLIENTS = 8


async def drive(
    requests: Sequence[Request], score: Callable[[Request], Awaitable[list[float]]], clients: int
) -> Outcome:
    """Clients that each send their next request as soon as the last one is answered."""
    rows: Rows = [[] for _ in requests]
    numbers = itertools.count()

    async def client() -> None:
        while (number := next(numbers)) < len(requests):
            rows[number] = await score(requests[number])

    started_s = time.perf_counter()
    failed: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(client())
    except* Exception as group_of_errors:
        # The first will do: a contender that fails one request is out.
        failed = group_of_errors.exceptions[0]
    if failed is not None:
        raise failed
    return Outcome(time.perf_counter() - started_s, rows)


class Served:
    """Base of contenders behind a port: what they start, and one event loop for the clients."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._runner: asyncio.Runner

    def __enter__(self) -> Self:
        try:
            self._start(self._stack)
            # One loop for all rounds: connections stay open between them, as they would in production.
            self._runner = self._stack.enter_context(asyncio.Runner())
            self._runner.run(self._connect())
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._runner.run(self._disconnect())
        finally:
            self._stack.close()

    def score(self, requests: Sequence[Request]) -> Outcome:
        """Eight clients at once."""
        return self._runner.run(drive(requests, self._score_one, CONCURRENT_CLIENTS))

    def _start(self, stack: ExitStack) -> None:
        """Start the processes; they end with `stack`."""
        raise NotImplementedError

    async def _connect(self) -> None:
        """Make the client."""
        raise NotImplementedError

    async def _disconnect(self) -> None:
        """Close the client."""
        raise NotImplementedError

    async def _score_one(self, request: Request) -> list[float]:
        """The logits of one request, in the order of its documents."""
        raise NotImplementedError


class InProcess:
    """A scorer without a network, in a process of its own; it times itself."""

    def __init__(self, name: str, what: str, factory: Callable[..., object], *arguments: object) -> None:
        self.name = name
        self.what = what
        self._process = Isolated(factory, *arguments)

    def __enter__(self) -> Self:
        self._process.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.__exit__(kind, error, traceback)

    def score(self, requests: Sequence[Request]) -> Outcome:
        """One run; what it takes to send the texts over is not counted."""
        outcome: Outcome = self._process.call("score", requests)
        return outcome
