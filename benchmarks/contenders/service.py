"""Our service: one server process with all cores, called with the SDK, with and without Nginx."""

from contextlib import ExitStack
from pathlib import Path

from rerank import AsyncRerankClient, TLSConfig

from benchmarks.contenders.base import Served
from benchmarks.processes import free_port
from benchmarks.rerank_server import nginx_in_front, rerank_server
from benchmarks.workload import Request

__all__ = ["WITHOUT_CACHE", "Service", "ServiceThroughNginx"]

CALL_TIMEOUT_S = 120.0
# Rounds repeat the same pairs: a cache would answer them all.
WITHOUT_CACHE = ("--pair-cache-mib", "0")


class Service(Served):
    """gRPC without anything in between."""

    name = "service_direct"
    what = "python -m server, gRPC, AsyncRerankClient"

    def __init__(self, model: Path, *options: str, name: str = "", what: str = "") -> None:
        super().__init__()
        self.name = name or self.name
        self.what = what or self.what
        self._model = model
        self._options = options
        self._target = ""
        self._tls: TLSConfig | None = None
        self._client: AsyncRerankClient

    def _start(self, stack: ExitStack) -> None:
        port = free_port()
        options = ["--device", "cpu", "--model", str(self._model), *WITHOUT_CACHE, *self._options]
        stack.enter_context(rerank_server(self.name, port, *options))
        self._target = f"127.0.0.1:{port}"

    async def _connect(self) -> None:
        self._client = AsyncRerankClient(self._target, tls=self._tls, timeout_s=CALL_TIMEOUT_S)

    async def _disconnect(self) -> None:
        await self._client.close()

    async def _score_one(self, request: Request) -> list[float]:
        ranking = await self._client.rerank(request.query, request.documents, raw_scores=True)
        by_index = {document.index: document.score for document in ranking}
        return [by_index[index] for index in range(len(request.documents))]


class ServiceThroughNginx(Service):
    """The way production runs it: TLS and HTTP/2 to Nginx, gRPC from there."""

    name = "service"
    what = "the same through Nginx: TLS, HTTP/2, grpc_pass"

    def _start(self, stack: ExitStack) -> None:
        super()._start(stack)
        self._target, root = stack.enter_context(nginx_in_front("nginx", [self._target]))
        self._tls = TLSConfig(root_certificates=root)
