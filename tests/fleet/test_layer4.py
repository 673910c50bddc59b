"""What the layer 4 configuration does to connections, as seen by clients and by servers.

The servers speak TLS with their own certificate, and Nginx has none: it passes through.
"""

import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2
from rerank.v1 import rerank_pb2, rerank_pb2_grpc

from deploy.local.certificate import CertificateFiles
from tests.support.calls import LARGE_MESSAGES, failure_of, health_stub, request_of, served_by
from tests.support.nginx import NginxProcess
from tests.support.ports import free_ports
from tests.support.scripted_server import Answer, ScriptedServer, echo_length
from tests.support.waiting import wait_until

MIB = 1024 * 1024
# Channels with equal options share a connection, and at layer 4 the connection is what is balanced.
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]


class Start:
    """Starts Nginx and scripted servers that end with the test."""

    def __init__(self, stack: ExitStack, folder: Path, certificate: CertificateFiles) -> None:
        self._stack = stack
        self._folder = folder
        self._certificate = certificate
        self.servers: list[ScriptedServer] = []

    def __call__(
        self, *, servers: int = 1, dead: int = 0, answer: Answer = echo_length, **values: str
    ) -> NginxProcess:
        """`dead` members are addresses where nobody listens; `values` are the template's variables."""
        self.servers = [
            self._stack.enter_context(ScriptedServer(f"server-{i}", answer, certificate=self._certificate))
            for i in range(servers)
        ]
        addresses = [f"127.0.0.1:{port}" for port in free_ports(dead)]
        addresses += [each.address for each in self.servers]
        nginx = NginxProcess("l4", self._folder / "nginx", self._certificate, addresses, values)
        return self._stack.enter_context(nginx)


@pytest.fixture
def start(tmp_path: Path, certificate: CertificateFiles) -> Iterator[Start]:
    """Start a fleet of this test's liking."""
    with ExitStack() as stack:
        yield Start(stack, tmp_path, certificate)


def test_connections_are_spread_and_each_stays_with_its_server(start: Start) -> None:
    """Connections go to the server with the fewest, and all calls of one go to the same server."""
    nginx = start(servers=2)
    with ExitStack() as stack:
        channels = [stack.enter_context(nginx.channel(OWN_CONNECTION)) for _ in range(6)]
        answered = [[served_by(channel) for _ in range(3)] for channel in channels]
    assert all(len(set(names)) == 1 for names in answered), answered
    assert Counter(names[0] for names in answered) == {"server-0": 3, "server-1": 3}


def test_servers_that_are_down_cost_no_call(start: Start) -> None:
    """With three of four members down every new connection reaches the one that is up."""
    nginx = start(servers=1, dead=3)
    for _ in range(5):
        with nginx.channel(OWN_CONNECTION) as channel:
            assert served_by(channel) == "server-0"


def test_a_channel_moves_on_when_its_server_goes(start: Start) -> None:
    """A channel whose server went away reaches another one with its next attempt."""
    nginx = start(servers=2)
    with nginx.channel(OWN_CONNECTION) as channel:
        first = served_by(channel)
        next(server for server in start.servers if server.name == first).stop()
        stub = rerank_pb2_grpc.RerankServiceStub(channel)
        # What the client notices only while sending is UNAVAILABLE, and its retry policy's business.
        response, call = stub.Rerank.with_call(request_of("a"), timeout=20, wait_for_ready=True)
        assert len(response.results) == 1
        assert dict(call.initial_metadata() or ())["x-served-by"] != first


def test_a_client_learns_at_once_that_its_server_died(start: Start) -> None:
    """A call in flight is UNAVAILABLE as soon as its server is gone, long before its deadline."""
    gone = threading.Event()

    def hold(request: rerank_pb2.RerankRequest, context: grpc.ServicerContext) -> rerank_pb2.RerankResponse:
        gone.wait(60)
        return echo_length(request, context)

    nginx = start(answer=hold)
    with nginx.channel(OWN_CONNECTION) as channel:
        call = rerank_pb2_grpc.RerankServiceStub(channel).Rerank.future(request_of("a"), timeout=60)
        wait_until(lambda: start.servers[0].metadata_seen, "the call to arrive")
        start.servers[0].stop()
        failure = call.exception(timeout=2)
        gone.set()
    assert isinstance(failure, grpc.Call)
    assert failure.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


def test_without_any_server_calls_are_unavailable(start: Start) -> None:
    """With all members down a call is UNAVAILABLE, which clients retry."""
    nginx = start(servers=0, dead=2)
    with nginx.channel(OWN_CONNECTION) as channel:
        assert failure_of(channel, request_of("a")).code() is grpc.StatusCode.UNAVAILABLE


def test_large_requests_pass_and_larger_ones_get_the_servers_answer(start: Start) -> None:
    """A request of 2 MB passes; one over the server's limit is RESOURCE_EXHAUSTED and names the limit."""
    nginx = start()
    with nginx.channel([*LARGE_MESSAGES, *OWN_CONNECTION]) as channel:
        stub = rerank_pb2_grpc.RerankServiceStub(channel)
        assert stub.Rerank(request_of("x" * 2_000_000), timeout=30).results[0].relevance_score == 2_000_000
        failure = failure_of(channel, request_of("x" * (17 * MIB)))
    assert failure.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(16 * MIB) in (failure.details() or "")


def test_health_watch_hears_the_next_change(start: Start) -> None:
    """A Watch through the balancer hears of its server's health."""
    nginx = start()
    with nginx.channel(OWN_CONNECTION) as channel:
        watch = health_stub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=30)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        start.servers[0].health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()


def test_connections_of_one_client_are_bounded(start: Start) -> None:
    """Those over the limit are closed at once, those that exist go on, and a place that is left is free."""
    nginx = start(MAX_CONNECTIONS_PER_CLIENT="3")

    def is_let_in() -> bool:
        with socket.create_connection(("127.0.0.1", nginx.port), timeout=10) as connection:
            connection.sendall(b"\x00")
            connection.settimeout(0.5)
            try:
                return connection.recv(1) != b""
            except TimeoutError:
                return True
            except ConnectionError:
                return False

    with nginx.channel(OWN_CONNECTION) as channel, ExitStack() as stack:
        assert served_by(channel) == "server-0"
        idle = [socket.create_connection(("127.0.0.1", nginx.port), timeout=10) for _ in range(2)]
        for connection in idle:
            stack.enter_context(connection)
        wait_until(lambda: not is_let_in(), "the limit to be reached")
        assert served_by(channel) == "server-0"
        idle.pop().close()
        wait_until(is_let_in, "the place to be free")
