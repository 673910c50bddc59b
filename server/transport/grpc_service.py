"""rerank.v1.RerankService over grpc.aio."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import grpc.aio
import structlog
from rerank.v1 import rerank_pb2, rerank_pb2_grpc

from server.config import Settings
from server.errors import Draining, InvalidRequest, RerankError, TooLarge
from server.models.base import ModelInfo
from server.reranker import Ranking, Reranker, RerankQuery
from server.transport.call import Call, CallLog
from server.transport.grpc_auth import current_caller
from server.transport.grpc_codec import received_bytes
from server.transport.grpc_errors import Metadata, error_message, rpc_status, status_name
from server.transport.grpc_messages import model_message, query_from_message, ranking_message
from server.transport.offload import by_size

__all__ = ["RerankService"]

# Of a query's id on a stream: a name, not a place for data.
MOST_ID_CHARACTERS = 1024
# How often a stream that is to end asks whether its last answer has been sent.
DRAIN_POLL_S = 0.05

Context: TypeAlias = grpc.aio.ServicerContext[object, object]

_log = structlog.get_logger("rerank.grpc")


@dataclass(slots=True)
class _Stream:
    """One RerankStream call in progress."""

    call: Call
    context: Context
    room: asyncio.Semaphore
    """Queries that may still be read before an answer must be taken."""
    most_bytes: int
    """Of all queries without a sent answer together, unless there is only one."""
    open_bytes: int = 0
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    answers: "asyncio.Queue[tuple[bytes, int] | Exception | None]" = field(default_factory=asyncio.Queue)
    """Written, and with the bytes of its query; None ends the stream well, an exception otherwise."""
    unanswered: int = 0
    """Queries that were read and whose answer has not been sent."""
    ids: set[str] = field(default_factory=set)
    queries: int = 0

    async def make_room(self, size: int) -> None:
        """Wait until a query of this size may be worked on: not reading on slows the sender down."""
        await self.room.acquire()
        while self.open_bytes and self.open_bytes + size > self.most_bytes:
            self.answered.clear()
            await self.answered.wait()
        self.open_bytes += size

    def sent(self, size: int) -> None:
        """The answer to a query of this size was taken, and another may come."""
        self.unanswered -= 1
        self.open_bytes -= size
        self.room.release()
        self.answered.set()

    @contextmanager
    def in_use(self, query_id: str) -> Iterator[None]:
        """Hold an id while its query is worked on."""
        if not query_id:
            raise InvalidRequest("id", "must not be empty")
        if len(query_id) > MOST_ID_CHARACTERS:
            raise TooLarge("id", "it", actual=len(query_id), limit=MOST_ID_CHARACTERS, unit="characters")
        if query_id in self.ids:
            raise InvalidRequest("id", f"{query_id!r} is in use on this stream; give each query its own")
        self.queries += 1
        self.call.notes["queries"] = self.queries
        self.ids.add(query_id)
        try:
            yield
        finally:
            self.ids.discard(query_id)


class RerankService(rerank_pb2_grpc.RerankServiceServicer):
    """Reads messages, calls the reranker, writes answers and errors."""

    def __init__(self, reranker: Reranker, calls: CallLog, server_name: str, settings: Settings) -> None:
        self._reranker = reranker
        self._calls = calls
        self._server_name = server_name
        self._max_stream_queries = settings.max_stream_queries

    async def Rerank(  # noqa: N802, the contract's name
        self, request: rerank_pb2.RerankRequest, context: Context
    ) -> rerank_pb2.RerankResponse:
        """One query, many documents, answered best first."""
        with self._call("Rerank", context) as call:
            try:
                query, ranking = await self._rank(request, context.time_remaining(), call)
                response = await by_size(
                    received_bytes(),
                    ranking_message,
                    query,
                    ranking,
                    self._reranker.info,
                    return_documents=request.return_documents,
                )
                # As trailers, so that headers, message and status leave in one piece: a call whose
                # server dies between them can't be retried by gRPC.
                context.set_trailing_metadata(self._identity(call))
                call.status = "OK"
                return response
            except asyncio.CancelledError:
                # The caller hung up or its deadline passed; grpc.aio must see this.
                raise
            except Exception as error:
                call.status = status_name(error)
                _note_error(error, call)
                # Nothing was sent so far: only an answer that is all trailers is retried by gRPC clients.
                status = rpc_status(
                    error, self._identity(call), call.request_id, context.invocation_metadata()
                )
                await context.abort_with_status(status)

    async def RerankStream(  # type: ignore[override]  # noqa: N802, answers leave written, by their name
        self, requests: AsyncIterator[rerank_pb2.RerankStreamRequest], context: Context
    ) -> AsyncIterator[bytes]:
        """Many queries on one call, each answered as soon as it is done."""
        with self._call("RerankStream", context) as call:
            await context.send_initial_metadata(self._identity(call))
            stream = _Stream(
                call,
                context,
                room=asyncio.Semaphore(self._max_stream_queries),
                most_bytes=self._reranker.limits.max_request_bytes,
            )
            # No task group: one that fails cancels this call, which gRPC may be writing an answer of.
            reading = asyncio.create_task(self._read_stream(requests, stream))
            leaving = asyncio.create_task(self._leave_when_draining(stream))
            try:
                while (answer := await stream.answers.get()) is not None:
                    if isinstance(answer, Exception):
                        raise answer
                    message, size = answer
                    yield message
                    stream.sent(size)
                call.status = "OK"
            except Exception as error:
                call.status = status_name(error)
                failure = rpc_status(error, self._identity(call), call.request_id)
                _note_error(error, call)
            finally:
                reading.cancel()
                leaving.cancel()
            if call.status != "OK":
                await context.abort_with_status(failure)

    async def GetModel(  # noqa: N802, the contract's name
        self, request: rerank_pb2.GetModelRequest, context: Context
    ) -> rerank_pb2.GetModelResponse:
        """What is served, and within which limits."""
        with self._call("GetModel", context) as call:
            context.set_trailing_metadata(self._identity(call))
            call.status = "OK"
            return model_message(self._reranker.info, self._reranker.limits, self._server_name)

    async def _rank(
        self, request: rerank_pb2.RerankRequest, time_remaining_s: float | None, call: Call
    ) -> tuple[RerankQuery, Ranking]:
        caller = current_caller()
        with caller.query():
            query = await by_size(received_bytes(), query_from_message, request, time_remaining_s)
            ranking = await self._reranker.rerank(replace(query, charge=caller.charge))
        call.note_cost(len(query.documents), [ranking])
        return query, ranking

    async def _read_stream(
        self, requests: AsyncIterator[rerank_pb2.RerankStreamRequest], stream: "_Stream"
    ) -> None:
        """Start each query as it is read; past the limit stop reading, which slows the sender down."""
        try:
            async with asyncio.TaskGroup() as queries:
                async for item in requests:
                    stream.unanswered += 1
                    size = received_bytes()
                    await stream.make_room(size)
                    queries.create_task(self._answer_one(item, size, stream))
        except* Exception as errors:
            stream.answers.put_nowait(_first(errors))
        else:
            stream.answers.put_nowait(None)

    async def _leave_when_draining(self, stream: "_Stream") -> None:
        """End the stream once it waits for no answer, or when the drain's time is over."""
        await self._calls.draining.wait()
        while stream.unanswered and not self._calls.expired.is_set():  # noqa: ASYNC110, two conditions
            await asyncio.sleep(DRAIN_POLL_S)
        stream.answers.put_nowait(Draining("this server is about to stop; ask another one"))

    async def _answer_one(self, item: rerank_pb2.RerankStreamRequest, size: int, stream: "_Stream") -> None:
        try:
            with stream.in_use(item.id):
                query_call = Call(stream.call.request_id, "RerankStream query")
                query, ranking = await self._rank(item.request, stream.context.time_remaining(), query_call)
            answer = await by_size(
                size,
                _stream_answer,
                item.id,
                query,
                ranking,
                self._reranker.info,
                return_documents=item.request.return_documents,
            )
        except Exception as error:  # one query's error is its own and does not end the stream
            _note_error(error, stream.call)
            failure = rerank_pb2.RerankStreamResponse(id=item.id, error=error_message(error))
            answer = failure.SerializeToString()
        stream.answers.put_nowait((answer, size))

    @contextmanager
    def _call(self, method: str, context: Context) -> Iterator[Call]:
        offered = dict(context.invocation_metadata() or ()).get("x-request-id")
        with self._calls.call(method, offered if isinstance(offered, str) else None) as call:
            yield call

    def _identity(self, call: Call) -> Metadata:
        return (("x-request-id", call.request_id), ("x-served-by", self._server_name))


def _stream_answer(
    query_id: str, query: RerankQuery, ranking: Ranking, info: ModelInfo, *, return_documents: bool
) -> bytes:
    response = ranking_message(query, ranking, info, return_documents=return_documents)
    return rerank_pb2.RerankStreamResponse(id=query_id, response=response).SerializeToString()


def _first(errors: BaseExceptionGroup[Exception]) -> Exception:
    """One error of a group: what made the task group give up comes first."""
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


def _note_error(error: Exception, call: Call) -> None:
    if isinstance(error, RerankError):
        call.notes["reason"] = error.reason
        call.notes["error"] = error.message
    else:
        # A bug: the caller learns nothing of our insides, the log all of it.
        _log.exception("internal error")
