"""The whole way: the SDK, Nginx as it ships, and real servers with the simulated model."""

import signal
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from rerank import (
    DeadlineExceededError,
    RerankClient,
    TLSConfig,
    TooLargeError,
    UnavailableError,
)

from deploy.local.certificate import CertificateFiles
from tests.support.calls import health_stub
from tests.support.nginx import NginxProcess
from tests.support.server_process import ServerProcess
from tests.support.tls_server import TlsServer
from tests.support.waiting import wait_until

SERVERS = 3
MIB = 1024 * 1024
# One channel, one connection: at layer 4 that is what decides who answers.
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]


class Fleet:
    """Real servers, with Nginx in front at both layers."""

    def __init__(self, servers: list[ServerProcess], front: dict[str, NginxProcess]) -> None:
        self.servers = servers
        self.front = front

    def client(self, layer: str, **options: Any) -> RerankClient:
        """A client of the balancer at this layer."""
        nginx = self.front[layer]
        tls = TLSConfig(root_certificates=nginx.certificate.root) if layer == "l7" else False
        return RerankClient(
            nginx.address, tls=tls, grpc_options=OWN_CONNECTION, **{"timeout_s": 20.0, **options}
        )


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, certificate: CertificateFiles) -> Iterator[Fleet]:
    """Three servers that live as long as this file's tests; a test that ends one starts it again."""
    folder = tmp_path_factory.mktemp("fleet")
    with ExitStack() as stack:
        servers = [
            ServerProcess(folder, "--simulated-tokens-per-second", "20000", name=f"server-{index}")
            for index in range(SERVERS)
        ]
        for server in servers:
            stack.callback(server.stop)
            server.start()
        for server in servers:
            server.wait_ready()
        yield Fleet(
            servers,
            {
                layer: stack.enter_context(_front(layer, folder, certificate, servers))
                for layer in ("l7", "l4")
            },
        )


def _front(
    layer: str,
    folder: Path,
    certificate: CertificateFiles,
    servers: list[ServerProcess],
    values: Mapping[str, str] | None = None,
) -> NginxProcess:
    addresses = [server.address for server in servers]
    return NginxProcess(layer, folder / layer, certificate, addresses, values)


def _channel(layer: str, nginx: NginxProcess) -> grpc.Channel:
    return nginx.channel(OWN_CONNECTION) if layer == "l7" else grpc.insecure_channel(nginx.address)


both_layers = pytest.mark.parametrize("layer", ["l7", "l4"])


class Callers:
    """Threads that rerank through a balancer until told to stop; every answer is checked."""

    def __init__(self, fleet: Fleet, layer: str, count: int = 4) -> None:
        self._fleet = fleet
        self._layer = layer
        self._finished = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(index,)) for index in range(count)]
        self.answers: list[str] = []
        self.errors: list[Exception] = []

    def __enter__(self) -> "Callers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._finished.set()
        for thread in self._threads:
            thread.join(30)

    def wait_for(self, more: int) -> None:
        """Return when so many more calls were answered."""
        goal = len(self.answers) + more
        wait_until(lambda: len(self.answers) >= goal or self.errors, f"{more} more answers")

    def _call(self, index: int) -> None:
        with self._fleet.client(self._layer) as client:
            number = 0
            while not self._finished.is_set():
                number += 1
                documents = ["something else", f"needle {index} {number}"]
                try:
                    ranking = client.rerank(f"needle {index} {number}", documents)
                    assert ranking[0].index == 1
                except Exception as error:
                    self.errors.append(error)
                    return
                self.answers.extend(ranking.servers)


def test_calls_of_one_client_are_spread_over_all_servers(fleet: Fleet) -> None:
    """At layer 7 a single client is served by every server."""
    with fleet.client("l7") as client:
        answered = Counter(server for _ in range(30) for server in client.rerank("a", ["b"]).servers)
    assert set(answered) == {server.name for server in fleet.servers}
    assert min(answered.values()) >= 5, answered


def test_one_large_call_uses_the_whole_fleet(fleet: Fleet) -> None:
    """A call that the SDK splits is answered by several servers and merged as one."""
    documents = [f"document {number}" for number in range(60)]
    with fleet.client("l7", max_request_documents=5) as client:
        ranking = client.rerank("document 7", documents)
    assert len(ranking) == 60
    assert set(ranking.servers) == {server.name for server in fleet.servers}


def test_clients_are_spread_at_layer_4(fleet: Fleet) -> None:
    """At layer 4 each client is served by one server, and several clients by all."""
    with ExitStack() as stack:
        clients = [stack.enter_context(fleet.client("l4")) for _ in range(SERVERS)]
        answered = [{client.rerank("a", ["b"]).servers for _ in range(3)} for client in clients]
    assert all(len(servers) == 1 for servers in answered), answered
    assert len(set.union(*answered)) == SERVERS


@both_layers
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["drained", "killed"])
def test_a_server_that_goes_costs_no_call(fleet: Fleet, layer: str, number: signal.Signals) -> None:
    """Under steady load one server is drained or killed, stays away and returns; no call fails."""
    leaver = fleet.servers[0]
    with Callers(fleet, layer) as callers:
        callers.wait_for(30)
        leaver.signal(number)
        leaver.process.wait(20)
        callers.wait_for(60)
        leaver.start()
        leaver.wait_ready()
        callers.wait_for(30)
    assert callers.errors == []


@both_layers
def test_without_any_server_the_error_is_clean(
    layer: str, tmp_path: Path, certificate: CertificateFiles
) -> None:
    """When no server is up the SDK says so, after its retries."""
    absent = [ServerProcess(tmp_path, name=f"absent-{index}") for index in range(2)]
    with (
        _front(layer, tmp_path, certificate, absent) as nginx,
        Fleet(absent, {layer: nginx}).client(layer) as client,
        pytest.raises(UnavailableError) as raised,
    ):
        client.rerank("a", ["b"])
    assert raised.value.request_id


@both_layers
def test_requests_of_megabytes_pass(fleet: Fleet, layer: str) -> None:
    """A request of 2 MB is one request and is answered."""
    with fleet.client(layer, max_request_bytes=8 * MIB) as client:
        ranking = client.rerank("needle", ["x" * 2_000_000, "needle"])
    assert ranking[0].document == "needle"
    assert len(ranking.servers) == 1


@both_layers
def test_a_request_over_the_limit_gets_a_clear_error(fleet: Fleet, layer: str) -> None:
    """A document larger than the limit of one request is a TooLargeError that names the limit."""
    with (
        fleet.client(layer, max_request_bytes=64 * MIB) as client,
        pytest.raises(TooLargeError, match=r"16m|16777216|16,777,216"),
    ):
        client.rerank("needle", ["x" * (17 * MIB)])


@both_layers
def test_deadlines_pass_through(fleet: Fleet, layer: str) -> None:
    """A call that can't be done in time ends at its deadline, and the server knows that it did."""
    with (
        fleet.client(layer, timeout_s=0.3) as client,
        pytest.raises(DeadlineExceededError),
    ):
        client.rerank(
            "needle", [f"word {number} " * 200 for number in range(100)], request_id=f"late-{layer}"
        )
    wait_until(
        lambda: any(f"late-{layer}" in server.log.read_text() for server in fleet.servers),
        "a server to log the end of the call",
    )


@both_layers
def test_health_watch_hears_of_a_drain(layer: str, tmp_path: Path, certificate: CertificateFiles) -> None:
    """A Watch through the balancer stays open and hears NOT_SERVING when its server drains."""
    with (
        ServerProcess(tmp_path) as server,
        _front(layer, tmp_path, certificate, [server]) as nginx,
        _channel(layer, nginx) as channel,
    ):
        watch = health_stub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        server.signal(signal.SIGTERM)
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()


@pytest.fixture
def mutual(tmp_path: Path, certificate: CertificateFiles) -> Iterator[list[ServerProcess]]:
    """Two servers that only let in who has a certificate."""
    authority = ("--tls-client-authority", str(certificate.root))
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                TlsServer(tmp_path, certificate, *authority, client=certificate, name=f"mutual-{index}")
            )
            for index in range(2)
        ]


def _encrypted(certificate: CertificateFiles, name: str) -> dict[str, str]:
    return {
        "UPSTREAM_SCHEME": "grpcs",
        "UPSTREAM_TLS_ROOT": str(certificate.root),
        "UPSTREAM_TLS_NAME": name,
        "UPSTREAM_TLS_CERTIFICATE": str(certificate.certificate),
        "UPSTREAM_TLS_CERTIFICATE_KEY": str(certificate.key),
    }


def test_nginx_and_servers_prove_themselves_to_each_other(
    mutual: list[ServerProcess], tmp_path: Path, certificate: CertificateFiles
) -> None:
    """With mutual TLS behind Nginx calls are answered by all servers."""
    upstream = _encrypted(certificate, "localhost")
    with (
        _front("l7", tmp_path, certificate, mutual, upstream) as nginx,
        Fleet(mutual, {"l7": nginx}).client("l7") as client,
    ):
        answered = {server for _ in range(10) for server in client.rerank("a", ["b"]).servers}
    assert answered == {server.name for server in mutual}


def test_nginx_sends_nothing_to_a_server_with_another_name(
    mutual: list[ServerProcess], tmp_path: Path, certificate: CertificateFiles
) -> None:
    """A server whose certificate doesn't carry the expected name is as good as down."""
    upstream = _encrypted(certificate, "rerank-server")
    with (
        _front("l7", tmp_path, certificate, mutual, upstream) as nginx,
        Fleet(mutual, {"l7": nginx}).client("l7") as client,
        pytest.raises(UnavailableError),
    ):
        client.rerank("a", ["b"])
