"""`make up` and `make demo`: the local fleet as a process, from its start to its end."""

import os
import signal
import socket
import ssl
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest
from rerank import RerankClient, TLSConfig

from tests.support.child_process import ChildProcess
from tests.support.leftovers import processes_of
from tests.support.ports import free_port
from tests.support.waiting import wait_until

START_TIMEOUT_S = 120.0


class LocalFleet(ChildProcess):
    """`python -m deploy.local.fleet`; ready when it says how to use it."""

    # Twice the time that supervisord may take for all of its processes.
    stop_timeout_s = 60.0

    def __init__(self, folder: Path, *options: str, port: int | None = None) -> None:
        self.port = port or free_port()
        self.run_dir = folder / "run"
        super().__init__(
            [
                *(sys.executable, "-m", "deploy.local.fleet", "--run-dir", self.run_dir),
                *("--port", str(self.port), *options),
            ],
            folder / "fleet.log",
        )

    def wait_ready(self) -> None:
        """Return when the address was printed."""
        wait_until(self._announced, "the fleet to serve", timeout_s=START_TIMEOUT_S)

    def wait_end(self) -> int:
        """Return its exit code once it has ended by itself."""
        wait_until(lambda: not self.running, "the fleet to end", timeout_s=60)
        return int(self.process.returncode)

    def client(self) -> RerankClient:
        """A client that trusts the certificate made for this fleet."""
        tls = TLSConfig(root_certificates=self.run_dir / "tls" / "root.crt")
        return RerankClient(f"localhost:{self.port}", tls=tls, timeout_s=20)

    def over_http(self, path: str, body: bytes | None = None) -> int:
        """The status of a GET, or of a POST with a body, on the same address."""
        trusting = ssl.create_default_context(cafile=self.run_dir / "tls" / "root.crt")
        with urlopen(f"https://localhost:{self.port}{path}", body, context=trusting, timeout=20) as answer:
            return int(answer.status)

    def processes(self) -> dict[int, str]:
        """What it started and still runs: command lines by process id."""
        return {pid: line for pid, line in processes_of(self.run_dir).items() if pid != self.process.pid}

    def nginx_master(self) -> int:
        """The process id in Nginx's pid file."""
        return int((self.run_dir / "nginx" / "nginx.pid").read_text())

    def nginx_workers(self) -> set[int]:
        """The process ids of all of Nginx's workers, whoever is their master."""
        return {pid for pid, line in self.processes().items() if line.startswith("nginx: worker")}

    def _announced(self) -> bool:
        self.require_running()
        return "Ctrl-C stops everything" in self.log.read_text()


linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc to find what is left running")


@linux
def test_a_fleet_serves_heals_and_leaves_nothing_running(tmp_path: Path) -> None:
    """All answer gRPC and HTTP through TLS, a killed one comes back, and Ctrl-C ends every process."""
    with LocalFleet(tmp_path, "--model", "simulated", "--replicas", "2") as fleet:
        with fleet.client() as client:
            answered = {name for _ in range(10) for name in client.rerank("a", ["b"]).servers}
            assert answered == {"server-0", "server-1"}
            assert fleet.over_http("/v1/models") == 200
            # Nginx keeps a body of this size in a file, also when everything belongs to root.
            large = b'{"query": "a", "documents": ["b"], "unknown": "%s"}' % (b"x" * 1_000_000)
            assert fleet.over_http("/rerank", large) == 200
            victim = next(pid for pid, line in fleet.processes().items() if "server-0" in line)
            os.kill(victim, signal.SIGKILL)
            assert all(client.rerank("a", ["b"]) for _ in range(10))
        wait_until(lambda: "server-0 was restarted" in fleet.log.read_text(), "the restart to be reported")
        running = " ".join(fleet.processes().values())
        parts = ("supervisord", "server-0", "server-1", "nginx: worker", "healthgate")
        assert all(name in running for name in parts), running
        fleet.signal(signal.SIGINT)
        assert fleet.wait_end() == 0, fleet.log_tail()
    assert fleet.processes() == {}


@linux
def test_a_killed_nginx_is_back_without_its_old_workers(tmp_path: Path) -> None:
    """The workers of a killed master go on and keep the port; they end, and a new Nginx answers."""
    with LocalFleet(tmp_path, "--model", "simulated", "--replicas", "1") as fleet, fleet.client() as client:
        assert client.rerank("a", ["b"])
        master, old = fleet.nginx_master(), fleet.nginx_workers()
        os.kill(master, signal.SIGKILL)
        wait_until(lambda: "nginx was restarted" in fleet.log.read_text(), "the restart to be reported")
        wait_until(lambda: fleet.nginx_master() != master and fleet.nginx_workers(), "a new Nginx")
        assert old.isdisjoint(fleet.nginx_workers())
        assert all(client.rerank("a", [f"b {number}"]) for number in range(10))
        assert fleet.over_http("/v1/models") == 200
        fleet.signal(signal.SIGINT)
        assert fleet.wait_end() == 0, fleet.log_tail()
    assert fleet.processes() == {}


@linux
def test_a_server_that_cannot_start_ends_the_fleet_with_its_reason(tmp_path: Path) -> None:
    """A wrong model is said in the server's own words; nothing keeps running."""
    fleet = LocalFleet(tmp_path, "--model", str(tmp_path / "nowhere"), "--replicas", "1")
    fleet.start()
    try:
        assert fleet.wait_end() == 1
        assert "there is no such folder" in fleet.log.read_text()
        assert fleet.processes() == {}
    finally:
        fleet.stop()


@linux
def test_stopping_a_fleet_that_still_starts_leaves_nothing_running(tmp_path: Path) -> None:
    """SIGTERM in the middle of the start ends what has been started."""
    fleet = LocalFleet(tmp_path, "--model", "simulated", "--replicas", "1")
    fleet.start()
    try:
        wait_until(fleet.processes, "a first process")
        fleet.signal(signal.SIGTERM)
        fleet.wait_end()
        assert fleet.processes() == {}
    finally:
        fleet.stop()


def test_a_taken_port_is_one_clear_line(tmp_path: Path) -> None:
    """When something listens on the balancer's port, the message says which option to change."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        fleet = LocalFleet(tmp_path, "--model", "simulated", port=taken.getsockname()[1])
        fleet.start()
        try:
            assert fleet.wait_end() == 1
        finally:
            fleet.stop()
    assert "LB_PORT" in fleet.log.read_text()
    assert "Traceback" not in fleet.log.read_text()


@linux
def test_the_demo_ranks_with_the_real_model(tmp_path: Path) -> None:
    """The demo answers its queries with both servers, the right document first, and ends with status 0."""
    demo = ChildProcess(
        [sys.executable, "-m", "deploy.local.demo"], tmp_path / "demo.log", {"COLUMNS": "160"}
    )
    demo.start()
    try:
        wait_until(lambda: not demo.running, "the demo to end", timeout_s=240)
        assert demo.process.returncode == 0, demo.log_tail()
        said = demo.log.read_text()
    finally:
        demo.stop()
    assert "answered by server-0, server-1" in said
    assert "0.9998 │ Berlin has a population of 3.7 million" in said
