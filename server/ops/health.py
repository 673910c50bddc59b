"""The standard gRPC health service: the truth about this server, for `""` and for the Rerank service."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rerank.v1 import rerank_pb2

__all__ = ["HEALTH_SERVICE", "MAX_WATCHES", "RERANK_SERVICE", "Health"]

RERANK_SERVICE = rerank_pb2.DESCRIPTOR.services_by_name["RerankService"].full_name
SERVICE_NAMES = ("", RERANK_SERVICE)
HEALTH_SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
MAX_WATCHES = 1000
"""Open at once; each is memory and a task, and strangers may ask. Checks have no such bound: they end."""


class Health:
    """Says SERVING or NOT_SERVING, to Check and to every open Watch."""

    def __init__(self) -> None:
        self.serving = False
        """What it says now."""
        self._changed = asyncio.Event()

    def attach(self, server: grpc.aio.Server) -> None:
        """Serve grpc.health.v1 on a server."""
        health_pb2_grpc.add_HealthServicer_to_server(_HealthServicer(self), server)

    async def set(self, serving: bool) -> None:
        """Change what it says; watchers hear at once."""
        self.serving = serving
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def status(self, service: str) -> int:
        """What it says of a service, in the standard's numbers; SERVICE_UNKNOWN when there is none such."""
        answer = health_pb2.HealthCheckResponse
        if service not in SERVICE_NAMES:
            return int(answer.SERVICE_UNKNOWN)
        return int(answer.SERVING if self.serving else answer.NOT_SERVING)

    async def statuses(self, service: str) -> AsyncIterator[int]:
        """The status now, and each other one that follows, for ever. It waits for no other watcher."""
        told: int | None = None
        while True:
            changed, status = self._changed, self.status(service)
            if status != told:
                yield status
            told = status
            await changed.wait()


class _HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Not grpcio's own: that one holds a lock while it writes to a watcher, and a watcher that does not
    read would hold up every other one, and with them the server's drain.
    """

    def __init__(self, health: Health) -> None:
        self._health = health
        self._watches = 0

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - the name is the contract's
        """The status now; NOT_FOUND for a service that isn't here."""
        status = self._health.status(request.service)
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(
                grpc.StatusCode.NOT_FOUND, f"there is no service {request.service[:100]!r} here"
            )
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802 - as above
        """The status now and each that follows, until the client leaves."""
        if self._watches >= MAX_WATCHES:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{MAX_WATCHES} Watch calls are open already, the most of one server; use Check",
            )
        self._watches += 1
        try:
            async for status in self._health.statuses(request.service):
                yield health_pb2.HealthCheckResponse(status=status)
        finally:
            self._watches -= 1
