"""A steady stream of calls by the real client, each answer checked.

Open loop: calls start when the clock says so, whether or not earlier ones have ended, as
the users of a real service do. So an outage shows as failed or slow calls, never as a pause.
"""

import asyncio
import itertools
import statistics
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rerank import AsyncRerankClient, HedgePolicy, RerankError, RetryPolicy, TLSConfig

from tests.fleet.chaos.workload import Question
from tests.support.waiting import wait_until

__all__ = ["LoadOptions", "SteadyLoad", "Tally"]

# gRPC ends a call at its deadline; this much later the news has reached the event loop of a busy machine.
DEADLINE_TOLERANCE_S = 0.5
SHOWN_ERRORS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How the load behaves."""

    calls_per_s: float = 60.0
    timeout_s: float = 10.0
    clients: int = 6
    """Each with a connection of its own; at layer 4 a connection is what is balanced."""
    retry: RetryPolicy | None = None
    hedge: HedgePolicy | None = None


@dataclass(slots=True)
class Tally:
    """What became of the calls."""

    latencies_s: list[float] = field(default_factory=list)
    """Of every call that ended, well or not."""
    failed: int = 0
    wrong: int = 0
    late: int = 0
    """Calls that outlived their deadline."""
    errors: Counter[str] = field(default_factory=Counter)
    servers: Counter[str] = field(default_factory=Counter)
    """Answers of each server."""
    seconds: float = 0.0

    @property
    def requests(self) -> int:
        """Calls that ended."""
        return len(self.latencies_s)

    @property
    def calls_per_s(self) -> float:
        """Over the whole time."""
        return self.requests / self.seconds if self.seconds else 0.0

    def percentile_ms(self, percent: int) -> float:
        """Latency that this share of the calls did not exceed."""
        if len(self.latencies_s) < 2:
            return 1000 * sum(self.latencies_s)
        return 1000 * statistics.quantiles(self.latencies_s, n=100, method="inclusive")[percent - 1]

    def describe_errors(self) -> str:
        """The most frequent errors, for messages of failed tests."""
        return "; ".join(f"{count}x {error}" for error, count in self.errors.most_common(SHOWN_ERRORS))


class SteadyLoad:
    """Calls at a steady rate on a thread of its own; a context manager that ends when all calls have."""

    def __init__(
        self, target: str, tls: TLSConfig, questions: Sequence[Question], options: LoadOptions | None = None
    ) -> None:
        self._target = target
        self._tls = tls
        self._questions = questions
        self._options = options or LoadOptions()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="load")
        self._in_flight: set[asyncio.Task[None]] = set()
        self.tally = Tally()

    def __enter__(self) -> Self:
        self._thread.start()
        wait_until(lambda: self.tally.requests, "the first call of the load to end")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def in_flight(self) -> int:
        """Calls that wait for their answer now."""
        return len(self._in_flight)

    def wait_for_calls(self, count: int) -> None:
        """Return when that many more calls have ended."""
        goal = self.tally.requests + count
        wait_until(lambda: self.tally.requests >= goal, f"{count} more calls to end", timeout_s=60)

    async def _run(self) -> None:
        options = self._options
        clients = [
            AsyncRerankClient(
                self._target,
                tls=self._tls,
                timeout_s=options.timeout_s,
                retry=options.retry,
                hedge=options.hedge,
                # Clients with equal options would share one connection.
                grpc_options=[("grpc.use_local_subchannel_pool", 1)],
            )
            for _ in range(options.clients)
        ]
        turns = zip(itertools.cycle(clients), itertools.cycle(self._questions), strict=False)
        started_s = time.monotonic()
        for number in itertools.count():
            await asyncio.sleep(max(0.0, started_s + number / options.calls_per_s - time.monotonic()))
            if self._stop.is_set():
                break
            task = asyncio.create_task(self._call(*next(turns)))
            self._in_flight.add(task)
            task.add_done_callback(self._in_flight.discard)
        self.tally.seconds = time.monotonic() - started_s
        await asyncio.gather(*self._in_flight)
        for client in clients:
            await client.close()

    async def _call(self, client: AsyncRerankClient, question: Question) -> None:
        started_s = time.monotonic()
        try:
            ranking = await client.rerank(question.query, question.documents)
        except RerankError as error:
            self.tally.failed += 1
            self.tally.errors[f"{error.code.name}: {error.message[:160]}"] += 1
        else:
            self.tally.wrong += not question.is_answered_by(ranking)
            self.tally.servers.update(ranking.servers)
        took_s = time.monotonic() - started_s
        self.tally.late += took_s > self._options.timeout_s + DEADLINE_TOLERANCE_S
        self.tally.latencies_s.append(took_s)
