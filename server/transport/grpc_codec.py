"""Messages to objects and back, where they cost nobody else anything.

grpc.aio parses and writes on the event loop, and answers what it can't parse with UNKNOWN
and the name of a Python class. This interceptor takes both over: large messages are counted
before they are parsed, and parsed and written on a thread; what is no message of the
method's type gets INVALID_ARGUMENT like every other bad request.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError

from server.engine.held_bytes import HeldBytes
from server.errors import InvalidRequest, RerankError
from server.transport.call import accepted_request_id
from server.transport.grpc_errors import rpc_status, status_name
from server.transport.grpc_fields import FieldLimits
from server.transport.offload import SMALL_BYTES, by_size, off_loop

__all__ = ["MessageCodec", "received_bytes"]

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]

_log = structlog.get_logger("rerank.calls")
_received_bytes: ContextVar[int] = ContextVar("received_bytes", default=0)


def received_bytes() -> int:
    """The size of the message that this task received last; asking the message would write it once more."""
    return _received_bytes.get()


class MessageCodec(grpc.aio.ServerInterceptor):
    """Parses requests and writes answers for all methods of a server.

    Args:
        max_documents: how often a repeated field of a request may come.
        held: counts messages that have arrived and are not parsed yet.
        log_refusals: whether each call that is refused here has a line in the log, as other calls have.
    """

    def __init__(self, max_documents: int, held: HeldBytes, *, log_refusals: bool) -> None:
        self._max_documents = max_documents
        self._held = held
        self._log_refusals = log_refusals

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the method; without a deserializer and a serializer grpc.aio passes bytes through."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_deserializer is None or handler.unary_stream is not None:
            # Health's Watch is the one method that takes one message and answers with many.
            return handler
        parse = handler.request_deserializer
        limits = FieldLimits(parse.__self__.DESCRIPTOR, self._max_documents)
        method = handler_call_details.method if self._log_refusals else ""
        codec = _Codec(parse, handler.response_serializer, limits, self._held, method)
        return handler._replace(
            request_deserializer=None,
            response_serializer=None,
            unary_unary=handler.unary_unary and codec.unary(handler.unary_unary),
            stream_unary=handler.stream_unary and codec.collected(handler.stream_unary),
            stream_stream=handler.stream_stream and codec.stream(handler.stream_stream),
        )


@dataclass(frozen=True, slots=True)
class _Codec:
    """The codec of one method."""

    deserialize: Callable[[bytes], Any]
    serialize: Callable[[Any], bytes]
    limits: FieldLimits
    held: HeldBytes
    logged_method: str
    """Its name in the log; empty when refusals are not logged."""

    async def parse(self, data: bytes) -> Any:
        if len(data) < SMALL_BYTES:
            return self._parse(data)
        with self.held.hold(len(data)):
            return await off_loop(self._parse, data)

    def _parse(self, data: bytes) -> Any:
        try:
            if len(data) >= SMALL_BYTES:
                self.limits.check(data)
            return self.deserialize(data)
        except DecodeError as error:
            why = (
                "a string is not valid UTF-8"
                if "UTF-8" in str(error)
                else "the bytes are no protobuf message"
            )
            raise InvalidRequest("request", f"{why} of this method; check the client's encoding") from None

    def unary(self, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[bytes]]:
        async def call(data: bytes, context: Context) -> bytes:
            size = len(data)
            try:
                request = await self.parse(data)
            except RerankError as error:
                await self._refuse(error, context)
            _received_bytes.set(size)
            return await by_size(size, self.serialize, await method(request, context))

        return call

    def collected(self, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[bytes]]:
        async def call(messages: AsyncIterator[bytes], context: Context) -> bytes:
            return await off_loop(self.serialize, await method(self._parsed(messages), context))

        return call

    def stream(self, method: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[bytes]]:
        async def call(messages: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
            async for answer in method(self._parsed(messages), context):
                # Large ones are written already, beside whatever made them.
                yield answer if isinstance(answer, bytes) else self.serialize(answer)

        return call

    async def _parsed(self, messages: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        async for data in messages:
            # Not reading on slows the sender down; refusing would end the queries that it sent before.
            await self.held.wait_for_room(len(data))
            message = await self.parse(data)
            _received_bytes.set(len(data))
            yield message

    async def _refuse(self, error: RerankError, context: Context) -> NoReturn:
        offered = dict(context.invocation_metadata() or ()).get("x-request-id")
        request_id = accepted_request_id(offered if isinstance(offered, str) else None)
        if self.logged_method:
            _log.info(
                "call",
                method=self.logged_method,
                status=status_name(error),
                request_id=request_id,
                reason=error.reason,
                error=error.message,
            )
        await context.abort_with_status(rpc_status(error, (("x-request-id", request_id),), request_id))
        raise AssertionError("abort_with_status raises")
