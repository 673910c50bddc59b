"""Ask one server how it is."""

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from server.healthgate.rotation import Answer

__all__ = ["Probe"]

SERVICE = "rerank.v1.RerankService"
# Left alone, a refused channel waits seconds before it tries again, and a restarted server with it.
_OPTIONS = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 250)]


class Probe:
    """A channel to one server's grpc.health.v1, at IP:PORT."""

    def __init__(
        self, endpoint: str, host: str, credentials: grpc.ChannelCredentials | None, timeout_s: float
    ) -> None:
        # The certificate is that of the host as it is listed, and not of an address that it resolves to.
        options = [*_OPTIONS, ("grpc.ssl_target_name_override", host)]
        self._channel = (
            grpc.aio.insecure_channel(endpoint, options=_OPTIONS)
            if credentials is None
            else grpc.aio.secure_channel(endpoint, credentials, options=options)
        )
        self._timeout_s = timeout_s

    async def check(self) -> Answer:
        """What the server says now; never raises for what a server does."""
        try:
            answer = await health_pb2_grpc.HealthStub(self._channel).Check(
                health_pb2.HealthCheckRequest(service=SERVICE), timeout=self._timeout_s
            )
        except grpc.aio.AioRpcError:
            return Answer.SILENCE
        if answer.status == health_pb2.HealthCheckResponse.SERVING:
            return Answer.SERVING
        return Answer.NOT_SERVING

    async def close(self) -> None:
        """Hang up."""
        await self._channel.close()
