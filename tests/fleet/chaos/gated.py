"""Scripted servers behind the real Nginx, watched by the real gate."""

import time
from contextlib import ExitStack
from pathlib import Path

from grpc_health.v1 import health_pb2

from deploy.local.certificate import CertificateFiles
from tests.fleet.chaos.balancer import ChaosNginx
from tests.fleet.chaos.fleet import HealthGateProcess
from tests.support.calls import served_by
from tests.support.scripted_server import ScriptedServer
from tests.support.waiting import wait_until

__all__ = ["NOT_SERVING", "SERVICE", "SERVING", "Gated"]

SERVICE = "rerank.v1.RerankService"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Gated:
    """Scripted servers behind Nginx, watched by the gate."""

    def __init__(
        self, stack: ExitStack, folder: Path, certificate: CertificateFiles, *, servers: int = 3
    ) -> None:
        self.servers = [stack.enter_context(ScriptedServer(f"server-{i}")) for i in range(servers)]
        for server in self.servers:
            server.health.set(SERVICE, SERVING)
        addresses = [server.address for server in self.servers]
        self.nginx = stack.enter_context(ChaosNginx("l7", folder / "nginx", certificate, addresses))
        self.servers_file = folder / "servers"
        self.list_servers(*addresses)
        gate = HealthGateProcess(folder, self.nginx, self.servers_file)
        self.gate = stack.enter_context(gate)
        wait_until(lambda: self.says("in") == servers, "the gate to have seen everybody")
        self.channel = stack.enter_context(self.nginx.channel())

    def list_servers(self, *addresses: str) -> None:
        """Write the file that the gate follows."""
        self.servers_file.write_text("\n".join(addresses))

    def who_answers(self, calls: int = 30) -> set[str]:
        """The servers that answer a number of calls, one after the other."""
        return {served_by(self.channel) for _ in range(calls)}

    def wait_for_answers_by(self, *names: str) -> float:
        """Return after how many seconds just these servers answer calls."""
        started_s = time.monotonic()
        wait_until(lambda: self.who_answers() == set(names), f"answers by {names}", timeout_s=20)
        return time.monotonic() - started_s

    def says(self, event: str) -> int:
        """How often the gate has logged this."""
        return self.gate.log.read_text().count(f'"event": "{event}"')
