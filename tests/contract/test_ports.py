"""The ports of a real server, and Prometheus' one in particular."""

import itertools
import socket
import ssl
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from deploy.local.certificate import CertificateFiles
from tests.support.descriptors import held_connections
from tests.support.ports import free_port, free_ports
from tests.support.server_process import ServerProcess
from tests.support.tls_server import TlsServer
from tests.support.waiting import wait_until

KEY = "prometheus-key-0123456789"
OPTIONS = ("--port", "--http-port", "--metrics-port")
SILENT_CLIENTS = 100


def metrics(port: int, host: str = "127.0.0.1", **headers: str) -> httpx.Response:
    return httpx.get(f"http://{host}:{port}/metrics", headers=headers, trust_env=False, timeout=10)


def refusal(folder: Path, *options: str, environment: dict[str, str] | None = None) -> str:
    """What a server that can't start says, in its only line; it must not have begun to load."""
    process = ServerProcess(folder, *options, environment=environment)
    process.start()
    assert process.process.wait(60) == 2
    (line,) = process.log.read_text().splitlines()
    return line


@pytest.mark.parametrize("option", OPTIONS)
def test_a_taken_port_is_one_clear_line(tmp_path: Path, option: str) -> None:
    """Before a model is loaded, the option and its port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert refusal(tmp_path, option, str(port)).startswith(f"error: {option} {port}: can't listen on")


@pytest.mark.parametrize(("one", "other"), [*itertools.combinations(OPTIONS, 2)])
def test_two_options_can_not_name_one_port(tmp_path: Path, one: str, other: str) -> None:
    """Before a model is loaded, both options."""
    port = str(free_port())
    said = refusal(tmp_path, one, port, other, port)
    assert said.startswith(f"error: {other} {port}: is {one} as well")


def test_a_host_that_is_none_is_one_clear_line(tmp_path: Path) -> None:
    """A name that nobody resolves."""
    assert "error: --port" in refusal(tmp_path, "--host", "no.such.host.invalid")


@pytest.mark.parametrize("option", OPTIONS)
def test_a_port_taken_while_loading_is_one_clear_line(tmp_path: Path, option: str) -> None:
    """There is no traceback then either."""
    port = free_port()
    server = ServerProcess(tmp_path, "--simulated-startup", "3", option, str(port))
    server.start()
    wait_until(lambda: '"event": "loading"' in server.log.read_text(), "the server to load")
    with socket.create_server(("127.0.0.1", port)):
        assert server.process.wait(60) == 2
    assert server.log.read_text().splitlines()[-1].startswith(f"error: {option} {port}: can't listen on")
    assert "Traceback" not in server.log.read_text()


def test_metrics_are_where_the_host_option_says(tmp_path: Path) -> None:
    """And nowhere else."""
    port = free_port()
    with ServerProcess(tmp_path, "--metrics-port", str(port)):
        assert "rerank_token_budget" in metrics(port).text
        with pytest.raises(httpx.ConnectError):
            metrics(port, host="127.0.0.2")


def test_metrics_need_a_key_where_calls_do(tmp_path: Path) -> None:
    """Unless the operator says otherwise."""
    keys = tmp_path / "keys"
    keys.write_text(f"prometheus {KEY}\n")
    port = free_port()
    options = ("--api-keys-file", str(keys), "--metrics-port", str(port))
    with ServerProcess(tmp_path, *options):
        refused = metrics(port)
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert metrics(port, authorization=f"Bearer {KEY}").status_code == 200
    with ServerProcess(tmp_path, *options, "--no-metrics-require-key"):
        assert metrics(port).status_code == 200


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_silent_clients_do_not_keep_prometheus_out(
    tmp_path: Path, certificate: CertificateFiles, tls: bool
) -> None:
    """A hundred connections that say nothing, or half a request, of which it holds sixty-four."""
    port = free_port()
    with ExitStack() as stack:
        options = ("--metrics-port", str(port))
        if tls:
            stack.enter_context(TlsServer(tmp_path, certificate, *options, client=certificate))
        else:
            stack.enter_context(ServerProcess(tmp_path, *options))
        for number in range(SILENT_CLIENTS):
            silent = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            if number % 2:
                silent.sendall(b"GET /metrics HTTP/1.1\r\nHo")
        context = ssl.create_default_context(cafile=certificate.root)
        scheme = "https" if tls else "http"
        client = stack.enter_context(httpx.Client(verify=context, trust_env=False, timeout=10))
        begun_s = time.monotonic()
        assert client.get(f"{scheme}://localhost:{port}/metrics").status_code == 200
        assert time.monotonic() - begun_s < 5
        assert held_connections(port) <= 64


def test_all_ports_serve_at_once(tmp_path: Path) -> None:
    """The ports of one server do not get into each other's way."""
    http_port, metrics_port = free_ports(2)
    with ServerProcess(
        tmp_path, "--http-port", str(http_port), "--metrics-port", str(metrics_port)
    ) as server:
        assert server.health() == 1
        assert httpx.get(f"http://127.0.0.1:{http_port}/health", trust_env=False).status_code == 200
        assert metrics(metrics_port).status_code == 200
