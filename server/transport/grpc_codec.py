"""Messages to objects and back, where they cost nobody else anything.

grpc.aio parses and writes on the event loop, and answers what it can't parse with UNKNOWN
and the name of a Python class. This interceptor takes both over: large messages are counted
before they are parsed, and parsed and written on a thread; what is no message of the
method's type gets INVALID_ARGUMENT like every other bad request.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from server.errors import InvalidRequest, RerankError
from server.transport.grpc_errors import rpc_status
from server.transport.grpc_fields import FieldLimits
from server.transport.held_bytes import HeldBytes
from server.transport.offload import SMALL_BYTES, by_size, off_loop

__all__ = ["MessageCodec"]

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class MessageCodec(grpc.aio.ServerInterceptor):
    """Parses requests and writes answers for all methods of a server.

    Args:
        max_documents: how often a repeated field of a request may come.
        held: counts requests that have arrived and are not parsed yet.
    """

    def __init__(self, max_documents: int, held: HeldBytes) -> None:
        self._max_documents = max_documents
        self._held = held

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
        codec = _Codec(parse, handler.response_serializer, limits, self._held)
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
                await context.abort_with_status(rpc_status(error, (), ""))
            # Its bytes are not needed any more, and may be many.
            del data
            return await by_size(size, self.serialize, await method(request, context))

        return call

    def collected(self, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[bytes]]:
        async def call(messages: AsyncIterator[bytes], context: Context) -> bytes:
            return await off_loop(self.serialize, await method(self._parsed(messages), context))

        return call

    def stream(self, method: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[bytes]]:
        async def call(messages: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
            async for answer in method(self._parsed(messages), context):
                yield await by_size(answer.ByteSize(), self.serialize, answer)

        return call

    async def _parsed(self, messages: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        async for data in messages:
            yield await self.parse(data)
