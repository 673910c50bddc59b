"""Our service over HTTP and JSON, through Nginx and TLS as production runs it."""

import ssl
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.contenders.http_peer import HttpContender, by_index, rerank_body
from benchmarks.contenders.service import WITHOUT_CACHE
from benchmarks.processes import free_port
from benchmarks.rerank_server import nginx_in_front, rerank_server
from benchmarks.workload import Request

__all__ = ["ServiceOverHttp"]


class ServiceOverHttp(HttpContender):
    """The same server as `service`, asked with httpx as Infinity is."""

    name = "service_http"
    what = "python -m server through Nginx: HTTP and JSON over TLS"

    def __init__(self, model: Path, *options: str, name: str = "", what: str = "") -> None:
        super().__init__(free_port())
        self.name = name or self.name
        self.what = what or self.what
        self._options = ["--device", "cpu", "--model", str(model), *WITHOUT_CACHE, *options]

    def body(self, request: Request) -> dict[str, Any]:
        """Infinity's call, which our server takes as well."""
        return rerank_body("reranker", request)

    def logits(self, answer: Any, request: Request) -> list[float]:
        """Best first, with indices."""
        return by_index(answer, request)

    def _start(self, stack: ExitStack) -> None:
        grpc_port = free_port()
        options = [*self._options, "--http-port", str(self._port)]
        stack.enter_context(rerank_server(self.name, grpc_port, *options))
        address, root = stack.enter_context(
            nginx_in_front("nginx", [f"127.0.0.1:{grpc_port}"], http_servers=[f"127.0.0.1:{self._port}"])
        )
        self._url = f"https://{address}"
        self._trusted = ssl.create_default_context(cafile=root)
