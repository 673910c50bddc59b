"""API keys on gRPC: every method but health asks for one."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import grpc
import grpc.aio

from server.errors import Unauthenticated
from server.transport.api_keys import ANYONE, ApiKeys, Caller
from server.transport.grpc_errors import rpc_status

__all__ = ["RequireApiKey", "current_caller"]

# Balancers and orchestrators ask for health without a key.
HEALTH_PREFIX = "/grpc.health.v1.Health/"

_caller: ContextVar[Caller] = ContextVar("caller", default=ANYONE)


def current_caller() -> Caller:
    """Whose call this is; an unlimited stranger where no keys are configured."""
    return _caller.get()


class RequireApiKey(grpc.aio.ServerInterceptor):
    """Lets calls with a known key through, and tells the method whose they are."""

    def __init__(self, keys: ApiKeys) -> None:
        self._keys = keys

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Set the caller, or put a refusal in the method's place."""
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(HEALTH_PREFIX):
            return handler
        metadata: dict[str, Any] = dict(handler_call_details.invocation_metadata or ())
        try:
            caller = self._keys.caller(metadata.get("authorization"), metadata.get("x-api-key"))
        except Unauthenticated as error:
            return _refusal(handler, error)
        return _named(handler, caller)


def _named(handler: Any, caller: Caller) -> Any:
    """The handler with the caller in its context; unary methods are coroutines, the others generators."""

    async def unary(request: Any, context: Any) -> Any:
        _caller.set(caller)
        return await handler.unary_unary(request, context)

    async def stream(requests: Any, context: Any) -> AsyncIterator[Any]:
        _caller.set(caller)
        async for answer in handler.stream_stream(requests, context):
            yield answer

    async def collected(requests: Any, context: Any) -> Any:
        _caller.set(caller)
        return await handler.stream_unary(requests, context)

    if handler.unary_unary is not None:
        return handler._replace(unary_unary=unary)
    if handler.stream_stream is not None:
        return handler._replace(stream_stream=stream)
    if handler.stream_unary is not None:
        return handler._replace(stream_unary=collected)
    return handler


def _refusal(handler: Any, error: Unauthenticated) -> Any:
    async def unary(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        await context.abort_with_status(rpc_status(error, (), ""))

    async def stream(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        await context.abort_with_status(rpc_status(error, (), ""))
        yield  # never reached; makes this a generator, as methods that stream answers are

    return handler._replace(
        unary_unary=handler.unary_unary and unary,
        unary_stream=handler.unary_stream and stream,
        stream_unary=handler.stream_unary and unary,
        stream_stream=handler.stream_stream and stream,
    )
