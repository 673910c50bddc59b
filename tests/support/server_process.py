"""The real server, as a process of its own."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.child_process import ChildProcess
from tests.support.ports import free_port
from tests.support.waiting import wait_until

__all__ = ["ServerProcess"]

READY_TIMEOUT_S = 120.0


class ServerProcess(ChildProcess):
    """`python -m server` on a free port of 127.0.0.1; ready when its health says SERVING."""

    def __init__(
        self,
        folder: Path,
        *options: str,
        name: str = "server",
        model: str = "simulated",
        port: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.port = port or free_port()
        self.name = name
        super().__init__(self._command(model, options), folder / f"{name}.log", environment)

    def _command(self, model: str, options: Sequence[str]) -> list[str]:
        defaults = {
            "--host": "127.0.0.1",
            "--port": str(self.port),
            "--server-name": self.name,
            "--model": model,
            "--device": "cpu",
            "--threads": "1",
            "--drain-delay": "0.1",
            "--drain-grace": "10",
            "--log-format": "json",
        }
        flat = [part for pair in defaults.items() if pair[0] not in options for part in pair]
        return [sys.executable, "-m", "server", *flat, *options]

    @property
    def address(self) -> str:
        """Where to call it."""
        return f"127.0.0.1:{self.port}"

    def wait_ready(self) -> None:
        """Return once the server says that it is serving."""
        wait_until(self._serving, f"{self.name} to serve", timeout_s=READY_TIMEOUT_S)

    def _serving(self) -> bool:
        self.require_running()
        return self.health() == int(health_pb2.HealthCheckResponse.SERVING)

    def health(self, service: str = "") -> int | None:
        """What the server says of itself now; None when it doesn't answer."""
        with grpc.insecure_channel(self.address) as channel:
            try:
                answer = health_pb2_grpc.HealthStub(channel).Check(
                    health_pb2.HealthCheckRequest(service=service), timeout=2
                )
            except grpc.RpcError:
                return None
        return int(answer.status)
