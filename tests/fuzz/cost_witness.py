"""Small callers beside somebody else's large request: how long did they wait?

The witness has a process of its own (`benchmarks.processes.Isolated`), so that neither the
server nor whoever sends the large request holds up its clock.
"""

import http.client
import itertools
import json
import os
import statistics
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rerank.v1 import rerank_pb2, rerank_pb2_grpc

__all__ = ["PROBES", "CostWitness", "Waits"]

PROBES = ("grpc", "http", "health")
PAUSE_S = 0.01
# Longer than any stall that is worth telling apart from another.
PATIENCE_S = 10.0
# Of several processes that want the processor the witness goes first, where that is allowed.
NICENESS = -10


@dataclass(frozen=True, slots=True)
class Waits:
    """What small callers saw while they were watched."""

    longest_s: dict[str, float]
    """By probe."""
    median_s: dict[str, float]
    failures: dict[str, list[str]]
    """By probe: how calls ended that were not answered well."""


@dataclass(slots=True)
class _Seen:
    last_began_s: float = 0.0
    waits_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


class CostWitness:
    """Makes small calls all the while, each kind on a warm connection and a thread of its own."""

    def __init__(self, port: int, http_port: int) -> None:
        with suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
        self._lock = threading.Lock()
        self._seen = {probe: _Seen() for probe in PROBES}
        self._began_s = time.monotonic()
        self._stop = threading.Event()
        self._numbers = itertools.count()
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        stub = rerank_pb2_grpc.RerankServiceStub(self._channel)
        health = health_pb2_grpc.HealthStub(self._channel)
        http_client = _HttpClient(http_port)

        def call_grpc(number: int) -> None:
            request = rerank_pb2.RerankRequest(query=f"small {number}", documents=["one", "two"])
            stub.Rerank(request, timeout=PATIENCE_S)

        def call_health(number: int) -> None:
            answer = health.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
            if answer.status != health_pb2.HealthCheckResponse.SERVING:
                raise ValueError(f"health says {answer.status}")

        calls = {"grpc": call_grpc, "http": http_client.rerank, "health": call_health}
        self._threads = [
            threading.Thread(target=self._probe, args=(probe, call), daemon=True)
            for probe, call in calls.items()
        ]
        for thread in self._threads:
            thread.start()

    def begin(self) -> None:
        """Forget what was seen; what comes from now on counts."""
        with self._lock:
            self._began_s = time.monotonic()
            for seen in self._seen.values():
                seen.waits_s.clear()
                seen.failures.clear()

    def end(self) -> Waits:
        """What was seen since `begin`, once every call that is under way has ended."""
        now_s = time.monotonic()
        while not all(self._has_seen_beyond(probe, now_s) for probe in PROBES):
            time.sleep(PAUSE_S)
        with self._lock:
            return Waits(
                longest_s={probe: max(self._seen[probe].waits_s) for probe in PROBES},
                median_s={probe: statistics.median(self._seen[probe].waits_s) for probe in PROBES},
                failures={probe: list(self._seen[probe].failures) for probe in PROBES},
            )

    def pid(self) -> int:
        """Its process."""
        return os.getpid()

    def close(self) -> None:
        """Make no more calls."""
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=1)
        self._channel.close()

    def _probe(self, probe: str, call: Callable[[int], None]) -> None:
        seen = self._seen[probe]
        while not self._stop.wait(PAUSE_S):
            start_s = time.monotonic()
            failure = ""
            try:
                call(next(self._numbers))
            except Exception as error:
                failure = _in_a_line(error)
            with self._lock:
                # Begun before `begin`, it may have waited for what came before.
                if start_s >= self._began_s:
                    seen.last_began_s = start_s
                    seen.waits_s.append(time.monotonic() - start_s)
                    if failure:
                        seen.failures.append(failure)

    def _has_seen_beyond(self, probe: str, moment_s: float) -> bool:
        with self._lock:
            return self._seen[probe].last_began_s >= moment_s


class _HttpClient:
    """One kept connection, opened again when the server has closed it."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)

    def rerank(self, number: int) -> None:
        """One small request.

        Raises:
            ValueError: it was not answered with 200.
        """
        body = json.dumps({"query": f"small {number}", "documents": ["one", "two"]})
        try:
            self._connection.request("POST", "/rerank", body)
            response = self._connection.getresponse()
            response.read()
        except (http.client.HTTPException, OSError):
            self._connection.close()
            raise
        if response.status != 200:
            raise ValueError(f"status {response.status}")


def _in_a_line(error: Exception) -> str:
    if isinstance(error, grpc.Call):
        return f"{error.code().name}: {error.details()}"
    return f"{type(error).__name__}: {error}"
