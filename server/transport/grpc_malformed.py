"""Messages that can't be parsed get INVALID_ARGUMENT like every other bad request.

grpc.aio's own answer is UNKNOWN with the name of a Python class. An interceptor
lets the parse error travel as if it were the message, and refuses it before the
method sees it.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from server.errors import InvalidRequest
from server.transport.grpc_errors import rpc_status

__all__ = ["RefuseMalformed"]


class RefuseMalformed(grpc.aio.ServerInterceptor):
    """Refuses what is not a message of the method's type."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the deserializer and the method; both are plain fields of the handler."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_deserializer is None:
            return handler
        lenient = handler._replace(request_deserializer=_keep_error(handler.request_deserializer))
        if handler.unary_unary is not None:
            return lenient._replace(unary_unary=_refuse_unary(handler.unary_unary))
        if handler.stream_stream is not None:
            return lenient._replace(stream_stream=_refuse_stream(handler.stream_stream))
        if handler.stream_unary is not None:
            return lenient._replace(stream_unary=_refuse_collected(handler.stream_unary))
        # Health's Watch and other methods that take one message and answer with many.
        return handler


def _keep_error(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def parse(serialized: bytes) -> Any:
        try:
            return deserialize(serialized)
        except DecodeError as error:
            return error

    return parse


def _refuse_unary(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def checked(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        if isinstance(request, DecodeError):
            await context.abort_with_status(rpc_status(_malformed(request), (), ""))
        return await method(request, context)

    return checked


def _refuse_stream(method: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
    async def checked(
        requests: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[Any]:
        async for answer in method(_well_formed(requests), context):
            yield answer

    return checked


def _refuse_collected(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def checked(requests: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        return await method(_well_formed(requests), context)

    return checked


async def _well_formed(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        if isinstance(request, DecodeError):
            raise _malformed(request)
        yield request


def _malformed(error: DecodeError) -> InvalidRequest:
    why = "a string is not valid UTF-8" if "UTF-8" in str(error) else "the bytes are not a protobuf message"
    return InvalidRequest("request", f"{why} of this method; check the client's encoding")
