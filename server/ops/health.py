"""The standard gRPC health service: the truth about this server, for `""` and for the Rerank service."""

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from rerank.v1 import rerank_pb2

__all__ = ["HEALTH_SERVICE", "RERANK_SERVICE", "Health"]

RERANK_SERVICE = rerank_pb2.DESCRIPTOR.services_by_name["RerankService"].full_name
SERVICE_NAMES = ("", RERANK_SERVICE)
HEALTH_SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name


class Health:
    """Says SERVING or NOT_SERVING, to Check and to every open Watch."""

    def __init__(self) -> None:
        self._servicer = health.aio.HealthServicer()
        self.serving = False
        """What it says now."""

    def attach(self, server: grpc.aio.Server) -> None:
        """Serve grpc.health.v1 on a server."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def set(self, serving: bool) -> None:
        """Change what it says; watchers hear at once."""
        self.serving = serving
        status = (
            health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for name in SERVICE_NAMES:
            await self._servicer.set(name, status)
