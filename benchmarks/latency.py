"""How long one call takes when the model has no part in it: a cached request, the way it came and went.

One client, one kept connection, one call after the other: gRPC and HTTP, directly and through
Nginx with TLS. The model is simulated, since every pair comes from the cache.
"""

import http.client
import json
import ssl
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from rerank.v1 import rerank_pb2, rerank_pb2_grpc

from benchmarks.fairness import percentile
from benchmarks.processes import free_port
from benchmarks.protocol import Unavailable
from benchmarks.rerank_server import nginx_in_front, rerank_server
from benchmarks.workload import passages

__all__ = ["WAYS", "LatencyPlan", "measure_latency"]

DOCUMENTS = 10
QUERY = "what was asked before"
CALL_TIMEOUT_S = 30.0
WAYS = ("grpc_direct", "grpc_nginx", "http_direct", "http_nginx")

Call = Callable[[], None]


@dataclass(frozen=True, slots=True)
class LatencyPlan:
    """How often to call."""

    calls: int = 1000
    rounds: int = 3


def measure_latency(plan: LatencyPlan, report: Callable[[str], None]) -> dict[str, Any]:
    """Milliseconds of a cached call by way, from the round with the best median; ways take turns."""
    documents = passages(DOCUMENTS)
    grpc_port, http_port = free_port(), free_port()
    server = ("--model", "simulated", "--http-port", str(http_port))
    addresses = [f"127.0.0.1:{grpc_port}"], [f"127.0.0.1:{http_port}"]
    best: dict[str, list[float]] = {}
    with (
        rerank_server("latency", grpc_port, *server),
        nginx_in_front("latency_nginx", addresses[0], http_servers=addresses[1]) as (address, root),
        _grpc(addresses[0][0], None, documents) as grpc_direct,
        _grpc(address, root, documents) as grpc_nginx,
        _http(addresses[1][0], None, documents) as http_direct,
        _http(address, root, documents) as http_nginx,
    ):
        calls = dict(zip(WAYS, (grpc_direct, grpc_nginx, http_direct, http_nginx), strict=True))
        for turn in range(plan.rounds):
            for way, call in calls.items():
                report(f"latency, {way.replace('_', ', ')}, round {turn + 1} of {plan.rounds}")
                took_ms = _round_ms(call, plan.calls)
                if way not in best or statistics.median(took_ms) < statistics.median(best[way]):
                    best[way] = took_ms
    what = f"a call of {DOCUMENTS} documents that were all seen before, on a kept connection, one at a time"
    figures = {
        way: {"p50_ms": statistics.median(took_ms), "p99_ms": percentile(took_ms, 99)}
        for way, took_ms in best.items()
    }
    return {"what": what, "calls": plan.calls, "rounds": plan.rounds, **figures}


def _round_ms(call: Call, calls: int) -> list[float]:
    for _ in range(calls // 10):  # warm-up
        call()
    took_ms = []
    for _ in range(calls):
        started_s = time.perf_counter()
        call()
        took_ms.append((time.perf_counter() - started_s) * 1000)
    return took_ms


@contextmanager
def _grpc(address: str, root: Path | None, documents: list[str]) -> Iterator[Call]:
    """On a bare stub: what the SDK adds is not asked here."""
    channel = (
        grpc.insecure_channel(address)
        if root is None
        else grpc.secure_channel(address, grpc.ssl_channel_credentials(root.read_bytes()))
    )
    with channel:
        stub = rerank_pb2_grpc.RerankServiceStub(channel)
        request = rerank_pb2.RerankRequest(query=QUERY, documents=documents)

        def call() -> None:
            stub.Rerank(request, timeout=CALL_TIMEOUT_S)

        yield call


@contextmanager
def _http(address: str, root: Path | None, documents: list[str]) -> Iterator[Call]:
    """With the standard library's client, which takes little time of its own."""
    if root is None:
        connection = http.client.HTTPConnection(address, timeout=CALL_TIMEOUT_S)
    else:
        trusted = ssl.create_default_context(cafile=root)
        connection = http.client.HTTPSConnection(address, timeout=CALL_TIMEOUT_S, context=trusted)
    body = json.dumps({"query": QUERY, "documents": documents})

    def call() -> None:
        connection.request("POST", "/rerank", body, {"content-type": "application/json"})
        response = connection.getresponse()
        answer = response.read()
        if response.status != 200:
            raise Unavailable(f"HTTP was answered with {response.status}: {answer[:200].decode()}")

    try:
        yield call
    finally:
        connection.close()
