"""The I/O of AsyncRerankClient: a grpc.aio channel, made on the event loop that first uses it."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Iterator
from functools import partial
from typing import Any, Protocol

import grpc
import grpc.aio

from rerank._async_stream import AsyncStream, Events, Queries, drain, next_item, read_source
from rerank._errors import RerankError
from rerank._health import CHECK_METHOD, ServingStatus, encode_request, status_of
from rerank._hedging import HedgeBudget
from rerank._plan import Plan, Reply
from rerank._repeats import Repeats, RepeatThrottle
from rerank._scatter import Attempt, Scatter
from rerank._settings import Call, ClientSettings
from rerank._stream import Outcome, StreamSession
from rerank._translate import (
    Failure,
    closed_error,
    ended_early_error,
    error_of_failure,
    served_by,
)
from rerank._type_variables import K, T
from rerank.v1 import rerank_pb2 as wire
from rerank.v1 import rerank_pb2_grpc

__all__ = ["AsyncGrpcTransport", "AsyncTransport"]


class AsyncTransport(Protocol):
    """What AsyncRerankClient needs from below; AsyncFakeRerankClient brings its own."""

    @property
    def is_open(self) -> bool:
        """Whether there is a channel to close."""

    async def gather(self, plan: Plan[Any], call: Call) -> list[Reply]:
        """Send a plan's requests; return the answers in their order."""

    def stream(
        self, session: StreamSession[K, T], queries: Queries[K, T]
    ) -> AsyncGenerator[Outcome[K, T], None]:
        """Ask the queries on one stream and yield the outcomes as they come."""

    async def get_model(self, call: Call) -> wire.GetModelResponse:
        """Describe the model."""

    async def health(self, call: Call) -> ServingStatus:
        """Ask the server how it is."""

    async def close(self) -> None:
        """Let go of everything; calls under way fail."""


class _Connection:
    """A channel with its stubs, and the event loop that it belongs to."""

    def __init__(self, settings: ClientSettings, credentials: grpc.ChannelCredentials | None) -> None:
        self.loop = asyncio.get_running_loop()
        options = settings.channel_options()
        self.channel = (
            grpc.aio.secure_channel(settings.target, credentials, options)
            if credentials
            else grpc.aio.insecure_channel(settings.target, options)
        )
        # The stub class is the same for both kinds of channel; only its types differ.
        self.stub: Any = rerank_pb2_grpc.RerankServiceStub(self.channel)
        self.check: Any = self.channel.unary_unary(CHECK_METHOD)


class AsyncGrpcTransport:
    """Talks to one target over one channel, on one event loop."""

    def __init__(self, settings: ClientSettings) -> None:
        self._settings = settings
        self._hedging = HedgeBudget(settings.hedge) if settings.hedge else None
        self._credentials = settings.tls.credentials() if settings.tls else None
        self._throttle = RepeatThrottle()
        self._connection: _Connection | None = None
        self._closed = False

    @property
    def is_open(self) -> bool:
        """Whether there is a channel to close."""
        return self._connection is not None

    async def gather(self, plan: Plan[Any], call: Call) -> list[Reply]:
        """Send a plan's requests, max_in_flight at a time; the first to fail ends the others."""
        scatter = Scatter(
            len(plan.requests),
            max_in_flight=self._settings.max_in_flight,
            retry=self._settings.retry,
            throttle=self._throttle,
            ends_at=call.ends_at,
            hedging=self._hedging,
        )
        tasks: dict[Attempt, asyncio.Task[Reply]] = {}
        ended: asyncio.Queue[Attempt] = asyncio.Queue()
        replies: dict[int, Reply] = {}
        try:
            while not scatter.finished:
                for attempt in scatter.due(time.monotonic()):
                    request = plan.requests[attempt.position]
                    tasks[attempt] = asyncio.create_task(self._send(request, call, attempt.number))
                    tasks[attempt].add_done_callback(partial(_put, ended, attempt))
                ended_attempt = await next_item(ended, scatter.wait_s(time.monotonic()))
                if ended_attempt is None or not scatter.is_running(ended_attempt):
                    continue
                try:
                    replies[ended_attempt.position] = tasks[ended_attempt].result()
                except RerankError as failed:
                    if error := scatter.failed(ended_attempt, failed, time.monotonic()):
                        raise plan.locate(ended_attempt.position, error) from None
                else:
                    scatter.succeeded(ended_attempt)
                for abandoned in scatter.abandoned():
                    tasks[abandoned].cancel()
        finally:
            # Nobody waits for what is still under way, whatever ended the loop.
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)
        return [replies[position] for position in range(len(plan.requests))]

    async def stream(
        self, session: StreamSession[K, T], queries: Queries[K, T]
    ) -> AsyncGenerator[Outcome[K, T], None]:
        """Ask the queries on one stream, reopened where it breaks, and yield the outcomes."""
        events: Events = asyncio.Queue()
        stream: AsyncStream | None = None
        window = asyncio.Semaphore(self._settings.max_in_flight)
        source = asyncio.create_task(read_source(queries, events, window))
        try:
            while not session.finished:
                for request in session.due(time.monotonic()):
                    if stream is None or stream.generation != session.generation:
                        if stream:
                            stream.cut()
                        stream = self._open_stream(session.call, session.generation, events)
                    stream.send(request)
                event = await next_item(events, session.wait_s(time.monotonic()))
                for outcome in session.handle(event, time.monotonic()):
                    window.release()
                    yield outcome
            if stream:
                await stream.finish()
        finally:
            source.cancel()
            if stream:
                stream.cut()

    async def get_model(self, call: Call) -> wire.GetModelResponse:
        """Describe the model."""
        repeats = Repeats(self._settings.retry, self._throttle, ends_at=call.ends_at)
        sent = 0
        while True:
            try:
                with self._errors(call):
                    response: wire.GetModelResponse = await self._connected(call).stub.GetModel(
                        wire.GetModelRequest(),
                        timeout=call.remaining_s(),
                        metadata=call.attempt_metadata(sent),
                    )
            except RerankError as error:
                sent += 1
                again_at = repeats.again_at(error, time.monotonic(), sent=sent)
                if again_at is None:
                    raise
                await asyncio.sleep(max(0.0, again_at - time.monotonic()))
            else:
                self._throttle.succeeded()
                return response

    async def health(self, call: Call) -> ServingStatus:
        """Ask the server how it is."""
        with self._errors(call):
            try:
                response = await self._connected(call).check(
                    encode_request(), timeout=call.remaining_s(), metadata=call.metadata
                )
            except grpc.aio.AioRpcError as failed:
                if failed.code() is grpc.StatusCode.NOT_FOUND:
                    return ServingStatus.SERVICE_UNKNOWN
                raise
            return status_of(response)

    async def close(self) -> None:
        """Close the channel, which cancels every call under way."""
        self._closed = True
        if self._connection and not self._connection.loop.is_closed():
            await self._connection.channel.close()
        self._connection = None

    async def _send(self, request: wire.RerankRequest, call: Call, number: int) -> Reply:
        with self._errors(call):
            pending = self._connected(call).stub.Rerank(
                request, timeout=call.remaining_s(), metadata=call.attempt_metadata(number)
            )
            response = await pending
            # In the trailers, unless a server sends its headers early.
            servers = served_by(await pending.trailing_metadata())
            return Reply(response, servers or served_by(await pending.initial_metadata()))

    def _open_stream(self, call: Call, generation: int, events: Events) -> AsyncStream:
        outgoing: asyncio.Queue[wire.RerankStreamRequest | None] = asyncio.Queue()
        accepted = asyncio.Event()
        # No deadline for the stream itself: each of its queries has one.
        responses = self._connected(call).stub.RerankStream(drain(outgoing, accepted), metadata=call.metadata)

        def explain(failed: BaseException | None) -> RerankError:
            if isinstance(failed, grpc.aio.AioRpcError):
                return error_of_failure(Failure.of(failed), self._settings, call)
            return closed_error(call) if self._closed else ended_early_error(self._settings, call)

        return AsyncStream(responses, outgoing, accepted, generation, events, explain)

    def _connected(self, call: Call) -> _Connection:
        if self._closed:
            raise closed_error(call)
        connection = self._connection
        if connection and connection.loop is asyncio.get_running_loop():
            return connection
        if connection and not connection.loop.is_closed():
            raise RuntimeError(
                "this AsyncRerankClient belongs to another event loop that still runs; "
                "make one client for each loop"
            )
        # Either the first call, or the first after asyncio.run() ended the loop before.
        self._connection = _Connection(self._settings, self._credentials)
        return self._connection

    @contextlib.contextmanager
    def _errors(self, call: Call) -> Iterator[None]:
        try:
            yield
        except grpc.aio.AioRpcError as failed:
            raise error_of_failure(Failure.of(failed), self._settings, call) from None
        except asyncio.CancelledError:
            # Closing the channel cancels calls, and gRPC tells that the way asyncio tells
            # a task to stop. Only the latter must pass.
            task = asyncio.current_task()
            if self._closed and not (task and task.cancelling()):
                raise closed_error(call) from None
            raise
        except grpc.aio.UsageError:
            raise closed_error(call) from None


def _put(ended: "asyncio.Queue[Attempt]", attempt: Attempt, _: object) -> None:
    ended.put_nowait(attempt)
