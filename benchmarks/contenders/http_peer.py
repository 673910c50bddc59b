"""Contenders that speak HTTP: one server process and eight clients of httpx."""

import ssl
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from benchmarks.contenders.base import CONCURRENT_CLIENTS, Served
from benchmarks.processes import ServerProcess
from benchmarks.protocol import Unavailable
from benchmarks.workload import Request

__all__ = ["HttpContender", "by_index", "rerank_body"]

REQUEST_TIMEOUT_S = 120.0


def rerank_body(model: str, request: Request) -> dict[str, Any]:
    """The call that Infinity made and others took over; `raw_scores` are logits."""
    return {"model": model, "query": request.query, "documents": request.documents, "raw_scores": True}


def by_index(answer: Any, request: Request) -> list[float]:
    """The answer to it: back from its order, best first, into the request's."""
    scores = {result["index"]: float(result["relevance_score"]) for result in answer["results"]}
    return [scores[index] for index in range(len(request.documents))]


class HttpContender(Served):
    """A server with `GET /health` and `POST /rerank`; subclasses know their command and their JSON."""

    name: str
    what: str

    def __init__(self, port: int) -> None:
        super().__init__()
        self._port = port
        self._url = f"http://127.0.0.1:{port}"
        self._trusted: ssl.SSLContext | bool = True
        self._client: httpx.AsyncClient

    def command(self) -> Sequence[str | Path]:
        """What starts the server."""
        raise NotImplementedError

    def environment(self) -> Mapping[str, str]:
        """Variables for the server, in addition to ours."""
        return {}

    def body(self, request: Request) -> dict[str, Any]:
        """The request in the server's JSON."""
        raise NotImplementedError

    def logits(self, answer: Any, request: Request) -> list[float]:
        """The logits out of the server's JSON, in the order of the documents."""
        raise NotImplementedError

    def _start(self, stack: ExitStack) -> None:
        stack.enter_context(ServerProcess(self.name, self.command(), self._is_healthy, self.environment()))

    def _is_healthy(self) -> bool:
        try:
            return httpx.get(f"{self._url}/health", timeout=5).is_success
        except httpx.TransportError:
            return False

    async def _connect(self) -> None:
        limits = httpx.Limits(max_connections=CONCURRENT_CLIENTS)
        self._client = httpx.AsyncClient(
            base_url=self._url, timeout=REQUEST_TIMEOUT_S, limits=limits, verify=self._trusted
        )

    async def _disconnect(self) -> None:
        await self._client.aclose()

    async def _score_one(self, request: Request) -> list[float]:
        answer = await self._client.post("/rerank", json=self.body(request))
        if not answer.is_success:
            raise Unavailable(f"{self.name} answered {answer.status_code}: {answer.text[:200]}")
        return self.logits(answer.json(), request)
