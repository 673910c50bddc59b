"""The I/O of RerankClient: a blocking gRPC channel."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Protocol, TypeVar

import grpc

from rerank._errors import RerankError
from rerank._health import CHECK_METHOD, ServingStatus, encode_request, status_of
from rerank._hedging import HedgeBudget
from rerank._plan import Plan, Reply
from rerank._repeats import Repeats, RepeatThrottle
from rerank._scatter import Attempt, Scatter
from rerank._settings import Call, ClientSettings
from rerank._stream import Outcome, Query, StreamSession
from rerank._threaded_stream import Events, ThreadedSource, ThreadedStream, next_event
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

__all__ = ["GrpcTransport", "Transport"]


A = TypeVar("A")


class Transport(Protocol):
    """What RerankClient needs from below; FakeRerankClient brings its own."""

    def gather(self, plan: Plan[Any], call: Call) -> list[Reply]:
        """Send a plan's requests; return the answers in their order."""

    def stream(self, session: StreamSession[K, T], queries: Iterable[Query[K, T]]) -> Iterator[Outcome[K, T]]:
        """Ask the queries on one stream and yield the outcomes as they come."""

    def get_model(self, call: Call) -> wire.GetModelResponse:
        """Describe the model."""

    def health(self, call: Call) -> ServingStatus:
        """Ask the server how it is."""

    def close(self) -> None:
        """Let go of everything; calls under way fail."""


class GrpcTransport:
    """Talks to one target over one channel; safe to use from many threads."""

    def __init__(self, settings: ClientSettings) -> None:
        self._settings = settings
        self._hedging = HedgeBudget(settings.hedge) if settings.hedge else None
        self._throttle = RepeatThrottle()
        self._closing = threading.Event()
        options = settings.channel_options()
        self._channel = (
            grpc.secure_channel(settings.target, settings.tls.credentials(), options)
            if settings.tls
            else grpc.insecure_channel(settings.target, options)
        )
        self._stub = rerank_pb2_grpc.RerankServiceStub(self._channel)
        self._check: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(CHECK_METHOD)

    def gather(self, plan: Plan[Any], call: Call) -> list[Reply]:
        """Send a plan's requests, max_in_flight at a time; the first to fail ends the others."""
        if len(plan.requests) == 1 and not self._hedging:
            return [self._send_and_wait(plan.requests[0], call)]
        scatter = Scatter(
            len(plan.requests),
            max_in_flight=self._settings.max_in_flight,
            retry=self._settings.retry,
            throttle=self._throttle,
            ends_at=call.ends_at,
            hedging=self._hedging,
        )
        ended: queue.SimpleQueue[Attempt] = queue.SimpleQueue()
        futures: dict[Attempt, Any] = {}
        replies: dict[int, Reply] = {}
        try:
            while not scatter.finished:
                for attempt in scatter.due(time.monotonic()):
                    futures[attempt] = self._send(plan.requests[attempt.position], call, attempt.number)
                    futures[attempt].add_done_callback(partial(_put, ended, attempt))
                try:
                    attempt = ended.get(timeout=scatter.wait_s(time.monotonic()))
                except queue.Empty:
                    continue
                if not scatter.is_running(attempt):
                    continue
                future = futures[attempt]
                if future.code() is grpc.StatusCode.OK:
                    servers = served_by(future.trailing_metadata()) or served_by(future.initial_metadata())
                    replies[attempt.position] = Reply(future.result(), servers)
                    scatter.succeeded(attempt)
                elif error := scatter.failed(attempt, self._error(future, call), time.monotonic()):
                    raise plan.locate(attempt.position, error)
                for abandoned in scatter.abandoned():
                    futures[abandoned].cancel()
        finally:
            # Nobody waits for what is still under way, whatever ended the loop.
            for future in futures.values():
                future.cancel()
        return [replies[position] for position in range(len(plan.requests))]

    def stream(self, session: StreamSession[K, T], queries: Iterable[Query[K, T]]) -> Iterator[Outcome[K, T]]:
        """Ask the queries on one stream, reopened where it breaks, and yield the outcomes."""
        events: Events = queue.SimpleQueue()
        stream: ThreadedStream | None = None
        source = ThreadedSource(queries, events, self._settings.max_in_flight)
        try:
            while not session.finished:
                for request in session.due(time.monotonic()):
                    if stream is None or stream.generation != session.generation:
                        if stream:
                            stream.cut()
                        stream = self._open_stream(session.call, session.generation, events)
                    stream.send(request)
                event = next_event(events, session.wait_s(time.monotonic()))
                for outcome in session.handle(event, time.monotonic()):
                    source.allow_one_more()
                    yield outcome
            if stream:
                stream.finish()
        finally:
            source.stop()
            if stream:
                stream.cut()

    def get_model(self, call: Call) -> wire.GetModelResponse:
        """Describe the model."""
        return self._until_answered(
            lambda metadata: self._stub.GetModel(
                wire.GetModelRequest(), timeout=call.remaining_s(), metadata=metadata
            ),
            call,
        )

    def health(self, call: Call) -> ServingStatus:
        """Ask the server how it is."""
        try:
            return status_of(
                self._check(encode_request(), timeout=call.remaining_s(), metadata=call.metadata)
            )
        except grpc.RpcError as failed:
            if Failure.of(failed).code is grpc.StatusCode.NOT_FOUND:
                return ServingStatus.SERVICE_UNKNOWN
            raise self._error(failed, call) from None
        except ValueError as error:
            raise self._refused(error, call) from None

    def close(self) -> None:
        """Close the channel, which cancels every call under way."""
        self._closing.set()
        self._channel.close()

    def _send_and_wait(self, request: wire.RerankRequest, call: Call) -> Reply:
        # Most calls are one request, which gRPC answers sooner to the thread that waits for it.
        response, answered = self._until_answered(
            lambda metadata: self._stub.Rerank.with_call(
                request, timeout=call.remaining_s(), metadata=metadata
            ),
            call,
        )
        return Reply(
            response, served_by(answered.trailing_metadata()) or served_by(answered.initial_metadata())
        )

    def _until_answered(self, send: Callable[[tuple[tuple[str, str], ...]], A], call: Call) -> A:
        """Call `send` with the headers of each attempt, until it returns or must not be repeated."""
        repeats = Repeats(self._settings.retry, self._throttle, ends_at=call.ends_at)
        sent = 0
        while True:
            try:
                with self._errors(call):
                    answer = send(call.attempt_metadata(sent))
            except RerankError as error:
                sent += 1
                again_at = repeats.again_at(error, time.monotonic(), sent=sent)
                if again_at is None:
                    raise repeats.error_to_tell(error) from None
                self._closing.wait(max(0.0, again_at - time.monotonic()))
            else:
                self._throttle.succeeded()
                return answer

    def _send(self, request: wire.RerankRequest, call: Call, number: int) -> Any:
        with self._errors(call):
            return self._stub.Rerank.future(
                request, timeout=call.remaining_s(), metadata=call.attempt_metadata(number)
            )

    def _open_stream(self, call: Call, generation: int, events: Events) -> ThreadedStream:
        outgoing: queue.SimpleQueue[wire.RerankStreamRequest | None] = queue.SimpleQueue()
        with self._errors(call):
            # No deadline for the stream itself: each of its queries has one.
            responses = self._stub.RerankStream(iter(outgoing.get, None), metadata=call.metadata)

        def explain(failed: grpc.RpcError | None) -> RerankError:
            return self._error(failed, call) if failed else ended_early_error(self._settings, call)

        return ThreadedStream(responses, outgoing, generation, events, explain)

    @contextlib.contextmanager
    def _errors(self, call: Call) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as failed:
            raise self._error(failed, call) from None
        except ValueError as error:
            raise self._refused(error, call) from None

    def _error(self, failed: Any, call: Call) -> RerankError:
        failure = Failure.of(failed)
        if self._closing.is_set() and failure.code is grpc.StatusCode.CANCELLED:
            return closed_error(call)
        return error_of_failure(failure, self._settings, call)

    def _refused(self, error: ValueError, call: Call) -> Exception:
        # gRPC says ValueError for a closed channel, and for a header that it won't send.
        return closed_error(call) if self._closing.is_set() else error


def _put(ended: "queue.SimpleQueue[Attempt]", attempt: Attempt, _: object) -> None:
    ended.put(attempt)
