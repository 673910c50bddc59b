"""Do ten documents wait behind a thousand? Measured with least-served-first and with first-come-first-served.

One client keeps requests of 1,000 documents going, one after the other and each as a
single message. Another does the same with requests of 10 documents, all about equally long.
What it waits is held against what it waited while the server was idle, for each way of
scheduling.
"""

import asyncio
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
from rerank.v1 import rerank_pb2, rerank_pb2_grpc

from benchmarks.processes import free_port
from benchmarks.rerank_server import rerank_server
from benchmarks.workload import passages

__all__ = ["FairnessPlan", "measure_fairness", "percentile"]

LARGE_DOCUMENTS = 1000
SMALL_DOCUMENTS = 10
DIFFERENT_SMALL_REQUESTS = 60
READ_CHARACTERS = 2000
# The first large request has reached the queue by then; a few early samples would do no harm.
HEAD_START_S = 0.5
CALL_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class FairnessPlan:
    """How long to measure."""

    large_documents: int = LARGE_DOCUMENTS
    idle_requests: int = 40
    busy_s: float = 30.0
    min_busy_requests: int = 2
    """First come, first served lets few requests through: go on until there are these."""


def measure_fairness(model: Path, plan: FairnessPlan, report: Callable[[str], None]) -> dict[str, Any]:
    """What small requests waited, in milliseconds, by scheduling."""
    what = (
        f"requests of {SMALL_DOCUMENTS} documents while one client keeps requests of "
        f"{plan.large_documents:,} going; one server on the CPU, the real model, gRPC, no pair cache"
    )
    figures: dict[str, Any] = {"what": what}
    for scheduling in ("fair", "fifo"):
        report(f"fairness, --scheduling {scheduling}")
        port = free_port()
        options = ["--device", "cpu", "--model", str(model), "--pair-cache-mib", "0"]
        with rerank_server(f"fairness_{scheduling}", port, *options, "--scheduling", scheduling):
            figures[scheduling] = asyncio.run(_measure(f"127.0.0.1:{port}", plan))
    return figures


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest value that `percent` of the values don't exceed; with few values p99 is the largest."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


async def _measure(address: str, plan: FairnessPlan) -> dict[str, Any]:
    async with grpc.aio.insecure_channel(address) as channel:
        clients = _Clients(channel, plan.large_documents)
        for _ in range(plan.idle_requests // 4):  # warm-up
            await clients.small_ms()
        idle_ms = [await clients.small_ms() for _ in range(plan.idle_requests)]
        busy_ms: list[float] = []
        large = asyncio.create_task(clients.keep_large_requests_going())
        try:
            await asyncio.sleep(HEAD_START_S)
            started_s = time.monotonic()
            while time.monotonic() - started_s < plan.busy_s or len(busy_ms) < plan.min_busy_requests:
                busy_ms.append(await clients.small_ms())
                if large.done():  # it never ends by itself, so it failed
                    large.result()
        finally:
            large.cancel()
            await asyncio.wait([large])
    return {
        "idle_p50_ms": statistics.median(idle_ms),
        "idle_p99_ms": percentile(idle_ms, 99),
        "idle_requests": len(idle_ms),
        "busy_p50_ms": statistics.median(busy_ms),
        "busy_p99_ms": percentile(busy_ms, 99),
        "busy_requests": len(busy_ms),
        "large_requests_answered": clients.large_answered,
    }


def _equal_hands(texts: Sequence[str], hands: int) -> list[list[str]]:
    """Deal documents so that all requests are about equally long, and "their time" is one number."""
    # A model reads no more than this of a document.
    by_length = sorted(texts, key=lambda text: min(len(text), READ_CHARACTERS), reverse=True)
    dealt: list[list[str]] = [[] for _ in range(hands)]
    for number, text in enumerate(by_length):
        turn, place = divmod(number, hands)
        # There and back again: who got the longest of one turn gets the shortest of the next.
        dealt[place if turn % 2 == 0 else hands - 1 - place].append(text)
    return dealt


class _Clients:
    """Both clients on one channel, on bare stubs: the SDK would split large requests into smaller ones."""

    def __init__(self, channel: grpc.aio.Channel, large_documents: int) -> None:
        self._stub: Any = rerank_pb2_grpc.RerankServiceStub(channel)
        texts = passages(large_documents + DIFFERENT_SMALL_REQUESTS * SMALL_DOCUMENTS)
        self._large = rerank_pb2.RerankRequest(
            query="Read a large request to its end", documents=texts[:large_documents]
        )
        self._small = itertools.cycle(
            rerank_pb2.RerankRequest(query="Return quickly what is short", documents=documents)
            for documents in _equal_hands(texts[large_documents:], DIFFERENT_SMALL_REQUESTS)
        )
        self.large_answered = 0

    async def small_ms(self) -> float:
        started_s = time.perf_counter()
        await self._stub.Rerank(next(self._small), timeout=CALL_TIMEOUT_S)
        return (time.perf_counter() - started_s) * 1000

    async def keep_large_requests_going(self) -> None:
        while True:
            await self._stub.Rerank(self._large, timeout=CALL_TIMEOUT_S)
            self.large_answered += 1
