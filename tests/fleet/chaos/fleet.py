"""A fleet to break: servers, Nginx and the health gate, each a process of its own."""

import itertools
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from rerank import TLSConfig

from deploy.local.certificate import CertificateFiles
from nginx.render import UPSTREAM_SERVERS_FILE, upstream_servers
from tests.fleet.chaos.balancer import ChaosNginx
from tests.fleet.chaos.load import LoadOptions, SteadyLoad
from tests.fleet.chaos.servers import FleetServer
from tests.fleet.chaos.workload import Question
from tests.support.child_process import ChildProcess
from tests.support.nginx import NginxProcess
from tests.support.ports import free_port
from tests.support.waiting import wait_until

__all__ = ["ChaosFleet", "HealthGateProcess"]


class HealthGateProcess(ChildProcess):
    """`python -m server.healthgate` for an Nginx and the servers in a file."""

    def __init__(self, folder: Path, nginx: NginxProcess, servers_file: Path, *options: str | Path) -> None:
        command = [
            *(sys.executable, "-m", "server.healthgate", "--servers-file", servers_file),
            *("--upstream-file", nginx.folder / UPSTREAM_SERVERS_FILE),
            *("--nginx-pid-file", nginx.folder / "nginx.pid"),
            *("--log-format", "json"),
            *options,
        ]
        super().__init__(command, folder / "healthgate.log")

    def wait_ready(self) -> None:
        """Return when it has found its servers."""
        wait_until(lambda: "watching" in self.log_tail(), "the health gate to start")
        self.require_running()


class ChaosFleet:
    """N servers with the simulated model behind Nginx, watched by the health gate; a context manager.

    At layer 7 Nginx ends TLS; at layer 4 it passes it through, and the servers speak it.
    """

    def __init__(
        self,
        layer: str,
        folder: Path,
        certificate: CertificateFiles,
        servers: int = 4,
        *,
        gate: bool = True,
        server_options: dict[str, str] | None = None,
        http: bool = False,
    ) -> None:
        self.layer = layer
        self.certificate = certificate
        self.servers: list[FleetServer] = []
        self.nginx: ChaosNginx
        self.gate: HealthGateProcess
        self._folder = folder
        self._initial_servers = servers
        self._has_gate = gate
        self._server_options = server_options or {}
        self._http = http
        self._servers_file = folder / "servers"
        self._stack = ExitStack()
        self._numbers = itertools.count()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._stack = stack
            self.servers = [self._new_server() for _ in range(self._initial_servers)]
            for server in self.servers:
                stack.callback(server.stop)
                server.start()
            self.wait_healthy()
            self.nginx = ChaosNginx(
                self.layer, self._folder / "nginx", self.certificate, self.addresses, self._http_upstream()
            )
            stack.enter_context(self.nginx)
            if self._has_gate:
                self._write_servers()
                self.gate = HealthGateProcess(self._folder, self.nginx, self._servers_file, *self._gate_tls())
                stack.enter_context(self.gate)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # All at once, since each waits for its drain.
        for server in self.servers:
            if server.running:
                server.signal(signal.SIGTERM)
        self._stack.close()

    @property
    def addresses(self) -> list[str]:
        """Of the servers, as Nginx and the gate know them."""
        return [server.address for server in self.servers]

    @property
    def tls(self) -> TLSConfig:
        """What the fleet's clients trust."""
        return TLSConfig(root_certificates=self.certificate.root)

    def load(self, questions: Sequence[Question], options: LoadOptions | None = None) -> SteadyLoad:
        """Calls to the whole fleet."""
        return SteadyLoad(self.nginx.address, self.tls, questions, options)

    def wait_healthy(self) -> None:
        """Return when every server serves."""
        for server in self.servers:
            server.wait_ready()

    def members(self) -> dict[str, bool]:
        """Every member of the upstream, and whether it is in the rotation."""
        lines = (self.nginx.folder / UPSTREAM_SERVERS_FILE).read_text().splitlines()
        return {line.split()[1]: " down;" not in line for line in lines if line.startswith("server ")}

    def is_in_rotation(self, server: FleetServer) -> bool:
        """Whether new calls may go to it."""
        return self.members().get(server.address, False)

    def wait_in_rotation(self, servers: Sequence[FleetServer] | None = None) -> None:
        """Return when all of them are in."""
        awaited = self.servers if servers is None else servers
        wait_until(lambda: all(map(self.is_in_rotation, awaited)), "servers to be in rotation", timeout_s=90)

    def wait_out_of_rotation(self, server: FleetServer) -> None:
        """Return when no new calls go to it."""
        wait_until(lambda: not self.is_in_rotation(server), f"{server.name} to leave the rotation")

    def add_servers(self, count: int) -> None:
        """Scale out: start servers, then tell the gate, which lets each in when it serves."""
        for _ in range(count):
            server = self._new_server()
            self._stack.callback(server.stop)
            server.start()
            self.servers.append(server)
        self._write_servers()

    def remove_servers(self, count: int) -> None:
        """Scale in: take the last ones out of the list, and stop each when it has left the upstream."""
        gone = self.servers[-count:]
        del self.servers[-count:]
        self._write_servers()
        addresses = {server.address for server in gone}
        wait_until(lambda: addresses.isdisjoint(self.members()), "servers to leave the list")
        for server in gone:
            server.signal(signal.SIGTERM)
        for server in gone:
            server.process.wait(30)

    def forget_the_past(self) -> None:
        """Restart the gate, since what it remembers of one scenario would damp the next."""
        self.wait_healthy()
        if self._has_gate:
            self.gate.stop()
            self.gate.log.unlink()
            self.gate.start()
            self.gate.wait_ready()
            self.wait_in_rotation()

    def _new_server(self) -> FleetServer:
        certificate = self.certificate if self.layer == "l4" else None
        options = self._server_options | ({"--http-port": str(free_port())} if self._http else {})
        return FleetServer(self._folder, f"server-{next(self._numbers)}", certificate, options)

    def _http_upstream(self) -> dict[str, str]:
        """Where Nginx finds the servers' ports for HTTP; nowhere unless they have any."""
        if not self._http:
            return {}
        members = self._folder / "http_upstream_servers.conf"
        members.write_text(upstream_servers([f"127.0.0.1:{server.http_port}" for server in self.servers]))
        return {"HTTP_UPSTREAM_SERVERS": str(members)}

    def _gate_tls(self) -> list[str | Path]:
        return ["--tls-root", self.certificate.root] if self.layer == "l4" else []

    def _write_servers(self) -> None:
        scratch = self._servers_file.with_suffix(".new")
        scratch.write_text("".join(f"{address}\n" for address in self.addresses))
        scratch.replace(self._servers_file)
