"""The two ends of a stream of the asynchronous client: tasks that never wait for each other."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from typing import Any, TypeVar

import grpc.aio

from rerank._errors import RerankError
from rerank._stream import Query
from rerank._stream_events import GOODBYE_S, Answered, Asked, Broke, Event, SourceEnded, Surplus
from rerank._translate import served_by
from rerank._type_variables import K, T
from rerank.v1 import rerank_pb2 as wire

__all__ = ["AsyncStream", "Events", "Queries", "drain", "next_item", "read_source"]

# How long to wait for a server's headers before the first request of a stream is sent.
ACCEPTANCE_S = 0.25

Queries = Iterable[Query[K, T]] | AsyncIterable[Query[K, T]]
Events = asyncio.Queue[Event]


class AsyncStream:
    """One RerankStream call: gRPC sends from a queue, a task receives."""

    def __init__(
        self,
        responses: Any,
        outgoing: "asyncio.Queue[wire.RerankStreamRequest | None]",
        accepted: asyncio.Event,
        generation: int,
        events: Events,
        explain: Callable[[BaseException | None], RerankError],
    ) -> None:
        self.generation = generation
        self._responses = responses
        self._outgoing = outgoing
        self._accepted = accepted
        self._events = events
        self._explain = explain
        self._surplus = Surplus()
        self._reader = asyncio.create_task(self._read(), name="rerank-stream-reader")

    def send(self, request: wire.RerankStreamRequest) -> None:
        """Queue a request; gRPC takes it as fast as the server reads."""
        self._surplus.ask()
        self._outgoing.put_nowait(request)

    async def finish(self) -> None:
        """Say that there is no more to come, and let the server end the call."""
        self._outgoing.put_nowait(None)
        await asyncio.wait([self._reader], timeout=GOODBYE_S)

    def cut(self) -> None:
        """End the call now; the server stops working on it."""
        self._responses.cancel()
        self._outgoing.put_nowait(None)
        self._reader.cancel()

    async def _read(self) -> None:
        failure: BaseException | None = None
        try:
            servers = served_by(await self._responses.initial_metadata())
            if servers:
                self._accepted.set()
            async for response in self._responses:
                self._events.put_nowait(Answered(self.generation, response, servers))
                if self._surplus.answer():
                    self._responses.cancel()  # the session makes an error of these answers
                    break
        except (grpc.aio.AioRpcError, asyncio.CancelledError) as failed:
            failure = failed
        self._events.put_nowait(Broke(self.generation, self._explain(failure)))


async def read_source(queries: Queries[K, T], events: Events, window: asyncio.Semaphore) -> None:
    """Read the caller's queries, a window ahead of the answers."""
    try:
        async with contextlib.aclosing(_as_async(queries)) as source:
            await window.acquire()
            async for query in source:
                events.put_nowait(Asked(query))
                await window.acquire()
    except Exception as error:
        # Raised again where the caller iterates.
        events.put_nowait(SourceEnded(error))
    else:
        events.put_nowait(SourceEnded())


async def _as_async(queries: Queries[K, T]) -> AsyncGenerator[Query[K, T], None]:
    if isinstance(queries, AsyncIterable):
        async for query in queries:
            yield query
    else:
        for query in queries:
            yield query


async def drain(
    outgoing: "asyncio.Queue[wire.RerankStreamRequest | None]", accepted: asyncio.Event
) -> AsyncGenerator[wire.RerankStreamRequest, None]:
    """Give gRPC what to send, but not before the server has taken the call, if it says so in time.

    grpc.aio forgets why a call was refused when it fails to write to it (grpc#36066), so
    an expired API key would look like an internal error.
    """
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(accepted.wait(), ACCEPTANCE_S)
    while (request := await outgoing.get()) is not None:
        yield request


Item = TypeVar("Item")


async def next_item(items: "asyncio.Queue[Item]", wait_s: float | None) -> Item | None:
    """Return the next item, or None if there is none in time; what is there already comes first."""
    with contextlib.suppress(asyncio.QueueEmpty):
        return items.get_nowait()
    try:
        return await asyncio.wait_for(items.get(), wait_s)
    except TimeoutError:
        return None
