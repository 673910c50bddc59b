"""tei.v1.Info and tei.v1.Rerank over grpc.aio, on the same port as our own service."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeAlias, TypeVar

import grpc
import grpc.aio
import structlog
from google.protobuf.message import Message

from server.errors import InvalidRequest, RerankError, TooLarge
from server.reranker import Reranker
from server.transport.call import Call, CallLog
from server.transport.grpc_auth import current_caller
from server.transport.grpc_codec import received_bytes
from server.transport.grpc_errors import Metadata, rpc_status, status_name
from server.transport.offload import by_size
from server.transport.tei.messages import (
    info_message,
    query_from_message,
    ranking_message,
    request_from_stream,
)
from server.transport.tei.v1 import tei_pb2

__all__ = ["TEI_SERVICES", "TeiService", "add_tei_services"]

_SERVICES = tei_pb2.DESCRIPTOR.services_by_name
INFO = _SERVICES["Info"].full_name
RERANK = _SERVICES["Rerank"].full_name
TEI_SERVICES = (INFO, RERANK)

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
M = TypeVar("M", bound=Message)

_log = structlog.get_logger("rerank.tei")


class TeiService:
    """Reads messages, calls the reranker, writes answers and errors."""

    def __init__(self, reranker: Reranker, calls: CallLog, server_name: str) -> None:
        self._reranker = reranker
        self._calls = calls
        self._server_name = server_name

    async def info(self, request: tei_pb2.InfoRequest, context: Context) -> tei_pb2.InfoResponse:
        """What is served."""

        async def describe(call: Call) -> tei_pb2.InfoResponse:
            return info_message(self._reranker.info, self._reranker.limits)

        return await self._answered("tei Info", context, describe)

    async def rerank(self, request: tei_pb2.RerankRequest, context: Context) -> tei_pb2.RerankResponse:
        """One query, many texts, answered best first."""

        async def answer(call: Call) -> tei_pb2.RerankResponse:
            return await self._rank(request, received_bytes(), context, call)

        return await self._answered("tei Rerank", context, answer)

    async def rerank_stream(
        self, requests: AsyncIterator[tei_pb2.RerankStreamRequest], context: Context
    ) -> tei_pb2.RerankResponse:
        """One text a message; answered when the client has sent all."""

        async def answer(call: Call) -> tei_pb2.RerankResponse:
            messages, size = await self._collect(requests)
            return await self._rank(await by_size(size, request_from_stream, messages), size, context, call)

        return await self._answered("tei RerankStream", context, answer)

    async def _collect(
        self, requests: AsyncIterator[tei_pb2.RerankStreamRequest]
    ) -> tuple[list[tei_pb2.RerankStreamRequest], int]:
        """All messages of a stream, which together are bounded like one request, and their bytes."""
        limits = self._reranker.limits
        messages: list[tei_pb2.RerankStreamRequest] = []
        size = 0
        async for message in requests:
            messages.append(message)
            size += received_bytes()
            if size > limits.max_request_bytes:
                raise TooLarge(
                    "text", "the stream", actual=size, limit=limits.max_request_bytes, unit="bytes"
                )
            if len(messages) > limits.max_documents:
                raise TooLarge(
                    "text", "the stream", actual=len(messages), limit=limits.max_documents, unit="texts"
                )
        if not messages:
            raise InvalidRequest("query", "the stream ended without a message; send one for each text")
        return messages, size

    async def _rank(
        self, request: tei_pb2.RerankRequest, size: int, context: Context, call: Call
    ) -> tei_pb2.RerankResponse:
        caller = current_caller()
        with caller.query():
            query = await by_size(size, query_from_message, request, context.time_remaining())
            ranking = await self._reranker.rerank(replace(query, charge=caller.charge))
        call.note_cost(len(query.documents), [ranking])
        return await by_size(size, ranking_message, query, ranking, return_text=request.return_text)

    async def _answered(self, method: str, context: Context, answer: Callable[[Call], Awaitable[M]]) -> M:
        """Log the call, name the server, and turn errors into statuses."""
        offered = dict(context.invocation_metadata() or ()).get("x-request-id")
        with self._calls.call(method, offered if isinstance(offered, str) else None) as call:
            identity: Metadata = (("x-request-id", call.request_id), ("x-served-by", self._server_name))
            try:
                response = await answer(call)
                # As trailers, like in grpc_service.py: nothing leaves before everything does.
                context.set_trailing_metadata(identity)
                call.status = "OK"
                return response
            except asyncio.CancelledError:
                # The caller hung up or its deadline passed; grpc.aio must see this.
                raise
            except Exception as error:
                call.status = status_name(error)
                if isinstance(error, RerankError):
                    call.notes["reason"], call.notes["error"] = error.reason, error.message
                else:
                    _log.exception("internal error")
                status = rpc_status(error, identity, call.request_id, context.invocation_metadata())
                await context.abort_with_status(status)
        raise AssertionError("abort_with_status raises")


def add_tei_services(server: grpc.aio.Server, service: TeiService) -> None:
    """Serve tei.v1.Info and tei.v1.Rerank."""
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                INFO,
                {
                    "Info": grpc.unary_unary_rpc_method_handler(
                        service.info,
                        request_deserializer=tei_pb2.InfoRequest.FromString,
                        response_serializer=tei_pb2.InfoResponse.SerializeToString,
                    )
                },
            ),
            grpc.method_handlers_generic_handler(
                RERANK,
                {
                    "Rerank": grpc.unary_unary_rpc_method_handler(
                        service.rerank,
                        request_deserializer=tei_pb2.RerankRequest.FromString,
                        response_serializer=tei_pb2.RerankResponse.SerializeToString,
                    ),
                    "RerankStream": grpc.stream_unary_rpc_method_handler(
                        service.rerank_stream,
                        request_deserializer=tei_pb2.RerankStreamRequest.FromString,
                        response_serializer=tei_pb2.RerankResponse.SerializeToString,
                    ),
                },
            ),
        )
    )
