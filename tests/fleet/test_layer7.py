"""What the layer 7 configuration does to calls, as seen by clients and by servers."""

import http.client
import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from queue import Queue

import grpc
import pytest
from grpc_health.v1 import health_pb2
from rerank.v1 import rerank_pb2, rerank_pb2_grpc

from deploy.local.certificate import CertificateFiles
from tests.support.calls import (
    LARGE_MESSAGES,
    RETRYING,
    failure_of,
    health_stub,
    metadata_of,
    request_of,
    served_by,
    spread,
)
from tests.support.nginx import NginxProcess
from tests.support.ports import free_ports
from tests.support.scripted_server import Answer, ScriptedServer, echo_length
from tests.support.waiting import wait_until

RERANK = "/rerank.v1.RerankService/Rerank"
MIB = 1024 * 1024


class Fleet:
    """Nginx in front of scripted servers."""

    def __init__(self, nginx: NginxProcess, servers: list[ScriptedServer]) -> None:
        self.nginx = nginx
        self.servers = servers


@pytest.fixture
def start(tmp_path: Path, certificate: CertificateFiles) -> Iterator["Start"]:
    """Start a fleet of this test's liking."""
    with ExitStack() as stack:
        yield Start(stack, tmp_path, certificate)


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Lets calls go that servers hold; set in any case when the test is over."""
    event = threading.Event()
    yield event
    event.set()


class Start:
    """Starts fleets that end with the test."""

    def __init__(self, stack: ExitStack, folder: Path, certificate: CertificateFiles) -> None:
        self._stack = stack
        self._folder = folder
        self._certificate = certificate

    def __call__(
        self,
        *,
        servers: int = 1,
        answer: Answer = echo_length,
        threads: int = 16,
        dead: int = 0,
        **values: str,
    ) -> Fleet:
        """`dead` members are addresses where nobody listens; `values` are the template's variables."""
        running = [
            self._stack.enter_context(ScriptedServer(f"server-{i}", answer, threads=threads))
            for i in range(servers)
        ]
        addresses = [f"127.0.0.1:{port}" for port in free_ports(dead)] + [each.address for each in running]
        nginx = NginxProcess("l7", self._folder / "nginx", self._certificate, addresses, values)
        return Fleet(self._stack.enter_context(nginx), running)


def holding(release: threading.Event) -> Answer:
    """An answer that keeps requests for the document "held" waiting for `release`."""

    def hold_when_asked(
        request: rerank_pb2.RerankRequest, context: grpc.ServicerContext
    ) -> rerank_pb2.RerankResponse:
        if request.documents[0] == "held":
            release.wait(60)
        return echo_length(request, context)

    return hold_when_asked


@contextmanager
def held_calls(
    fleet: Fleet, release: threading.Event, count: int
) -> Iterator[list["grpc.Future[rerank_pb2.RerankResponse]"]]:
    """`count` calls that wait inside the servers for `release`."""
    with fleet.nginx.channel() as channel:
        stub = rerank_pb2_grpc.RerankServiceStub(channel)
        seen = sum(len(server.metadata_seen) for server in fleet.servers)
        calls: list[grpc.Future[rerank_pb2.RerankResponse]] = [
            stub.Rerank.future(request_of("held"), timeout=60) for _ in range(count)
        ]
        wait_until(
            lambda: sum(len(server.metadata_seen) for server in fleet.servers) >= seen + count,
            "the held calls to arrive",
        )
        try:
            yield calls
        finally:
            release.set()


def test_calls_of_one_channel_are_spread_over_all_servers(start: Start) -> None:
    """Calls of a single connection reach every server, about equally often."""
    fleet = start(servers=3)
    with fleet.nginx.channel() as channel:
        answered = Counter(spread(channel, 60, at_once=6))
    assert sum(answered.values()) == 60
    assert min(answered[server.name] for server in fleet.servers) >= 10, answered


def test_a_busy_server_gets_no_more_calls_than_an_idle_one(start: Start, release: threading.Event) -> None:
    """While a server holds calls, new ones go to the server that holds fewer."""
    fleet = start(servers=2, answer=holding(release))
    with held_calls(fleet, release, 1), fleet.nginx.channel() as channel:
        busy = next(server.name for server in fleet.servers if server.metadata_seen)
        answered = Counter(served_by(channel) for _ in range(10))
    assert answered[busy] == 0, answered


def test_servers_that_are_down_cost_no_call(start: Start) -> None:
    """With three of four members down every call is answered, at its first attempt."""
    fleet = start(servers=1, dead=3)
    with fleet.nginx.channel() as channel:
        assert set(spread(channel, 40)) == {"server-0"}
    wait_until(lambda: len(fleet.nginx.calls(RERANK)) >= 40, "the access log")
    assert {entry["grpc_status"] for entry in fleet.nginx.calls(RERANK)} == {"0"}


def test_without_any_server_calls_are_unavailable_and_retried(start: Start) -> None:
    """With all members down a call is UNAVAILABLE in plain words, after all attempts of the retry policy."""
    fleet = start(servers=0, dead=2)
    with fleet.nginx.channel(RETRYING) as channel:
        failure = failure_of(channel, request_of("a"))
    assert failure.code() is grpc.StatusCode.UNAVAILABLE
    assert failure.details() == "load balancer: no server can answer"
    wait_until(lambda: len(fleet.nginx.calls(RERANK)) >= 4, "four attempts in the access log")
    assert [entry["grpc_status"] for entry in fleet.nginx.calls(RERANK)] == ["14"] * 4


def test_servers_that_return_are_used_at_once(start: Start) -> None:
    """An outage of every server leaves no mark: the first call after it succeeds."""
    fleet = start(servers=1, dead=1)
    revived = fleet.servers[0]
    revived.stop()
    with fleet.nginx.channel() as channel:
        assert failure_of(channel, request_of("a")).code() is grpc.StatusCode.UNAVAILABLE
        with ScriptedServer("revived", port=revived.port):
            assert served_by(channel) == "revived"


def test_a_call_whose_server_dies_is_unavailable(start: Start, release: threading.Event) -> None:
    """A server that goes away in the middle of a call leaves an error that gRPC clients retry."""
    fleet = start(servers=1, answer=holding(release))
    with held_calls(fleet, release, 1) as calls:
        fleet.servers[0].stop()
        failure = calls[0].exception(timeout=20)
    assert isinstance(failure, grpc.Call)
    assert failure.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


def test_requests_of_many_megabytes_pass(start: Start) -> None:
    """Requests of 2 MB and of nearly the limit arrive whole."""
    fleet = start()
    with fleet.nginx.channel(LARGE_MESSAGES) as channel:
        stub = rerank_pb2_grpc.RerankServiceStub(channel)
        for length in (2_000_000, 16 * MIB - 1000):
            response = stub.Rerank(request_of("x" * length), timeout=30)
            assert response.results[0].relevance_score == length


def test_a_request_over_the_limit_gets_a_clear_error(start: Start) -> None:
    """A request over the limit is INVALID_ARGUMENT, names the limit and is not sent again."""
    fleet = start(MAX_REQUEST_SIZE="3m")
    with fleet.nginx.channel([*LARGE_MESSAGES, *RETRYING]) as channel:
        failure = failure_of(channel, request_of("x" * (4 * MIB)))
    assert failure.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "3m" in (failure.details() or "")
    assert not fleet.servers[0].metadata_seen or len(fleet.nginx.calls(RERANK)) == 1


def test_a_stream_may_carry_more_than_the_limit_of_one_request(start: Start) -> None:
    """The limit is one of requests: a stream carries any number of them."""
    fleet = start(MAX_REQUEST_SIZE="1m")
    requests = [
        rerank_pb2.RerankStreamRequest(id=str(i), request=request_of("x" * 500_000)) for i in range(8)
    ]
    with fleet.nginx.channel(LARGE_MESSAGES) as channel:
        answers = rerank_pb2_grpc.RerankServiceStub(channel).RerankStream(iter(requests), timeout=30)
        assert [answer.id for answer in answers] == [item.id for item in requests]


def test_an_idle_stream_outlives_the_timeout_of_calls(start: Start, release: threading.Event) -> None:
    """A stream that says nothing for longer than CALL_TIMEOUT goes on, while a silent call does not."""

    fleet = start(answer=holding(release), CALL_TIMEOUT="1s")
    requests: Queue[rerank_pb2.RerankStreamRequest | None] = Queue()
    with fleet.nginx.channel() as channel:
        answers = rerank_pb2_grpc.RerankServiceStub(channel).RerankStream(
            iter(requests.get, None), timeout=60
        )
        requests.put(rerank_pb2.RerankStreamRequest(id="before", request=request_of("a")))
        assert next(answers).id == "before"
        for _ in range(2):
            failure = failure_of(channel, request_of("held"))
            assert failure.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert failure.details() == "load balancer: nothing was heard for 1s"
        requests.put(rerank_pb2.RerankStreamRequest(id="after", request=request_of("a")))
        assert next(answers).id == "after"
        requests.put(None)


def test_slow_calls_do_not_take_their_server_out(start: Start, release: threading.Event) -> None:
    """After calls that took too long the same server still answers."""

    fleet = start(answer=holding(release), CALL_TIMEOUT="1s")
    with fleet.nginx.channel() as channel:
        for _ in range(2):
            assert failure_of(channel, request_of("held")).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert served_by(channel) == "server-0"


def test_health_watch_stays_open(start: Start, release: threading.Event) -> None:
    """A Watch that heard nothing for longer than CALL_TIMEOUT still hears the next change."""
    fleet = start(CALL_TIMEOUT="1s", answer=holding(release))
    with fleet.nginx.channel() as channel:
        watch = health_stub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        assert failure_of(channel, request_of("held")).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        fleet.servers[0].health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()


def test_deadlines_reach_the_server(start: Start) -> None:
    """The server knows how much of the client's time is left."""
    remaining: Queue[float | None] = Queue()

    def tell(request: rerank_pb2.RerankRequest, context: grpc.ServicerContext) -> rerank_pb2.RerankResponse:
        remaining.put(context.time_remaining())
        return echo_length(request, context)

    fleet = start(answer=tell)
    with fleet.nginx.channel() as channel:
        served_by(channel, timeout_s=17)
    assert 10 < (remaining.get(timeout=5) or 0) <= 17


def test_cancelled_calls_are_cancelled_at_the_server(start: Start) -> None:
    """A client that gives up frees the server from the work."""
    cancelled = threading.Event()

    def wait_for_the_end(
        request: rerank_pb2.RerankRequest, context: grpc.ServicerContext
    ) -> rerank_pb2.RerankResponse:
        context.add_callback(cancelled.set)
        cancelled.wait(60)
        return echo_length(request, context)

    fleet = start(answer=wait_for_the_end)
    with fleet.nginx.channel() as channel:
        call = rerank_pb2_grpc.RerankServiceStub(channel).Rerank.future(request_of("a"), timeout=60)
        wait_until(lambda: fleet.servers[0].metadata_seen, "the call to arrive")
        call.cancel()
        assert cancelled.wait(10)


def test_rich_errors_pass(start: Start) -> None:
    """An error with 6 KB of details reaches the client as the server sent it."""
    details = b"\x00" * 4_500

    def refuse(request: rerank_pb2.RerankRequest, context: grpc.ServicerContext) -> rerank_pb2.RerankResponse:
        context.set_trailing_metadata((("rerank-error-bin", details),))
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "query: is blank")

    fleet = start(answer=refuse)
    with fleet.nginx.channel() as channel:
        failure = failure_of(channel, request_of("a"))
    assert failure.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert dict(failure.trailing_metadata() or ())["rerank-error-bin"] == details


def test_too_many_calls_from_one_client_are_told_to_wait(start: Start, release: threading.Event) -> None:
    """Calls over an address's limit are RESOURCE_EXHAUSTED and say when to come back; health is exempt."""
    fleet = start(answer=holding(release), MAX_CALLS_PER_CLIENT="3")
    with held_calls(fleet, release, 3) as held, fleet.nginx.channel() as channel:
        refused = failure_of(channel, request_of("a"))
        health = health_stub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        release.set()
        assert all(call.result(timeout=20) for call in held)
    assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert metadata_of(refused)["grpc-retry-pushback-ms"] == "250"
    assert health.status == health_pb2.HealthCheckResponse.SERVING


def test_one_connection_carries_hundreds_of_calls_at_once(start: Start, release: threading.Event) -> None:
    """More calls than Nginx's default of 128 are in flight on one connection."""
    fleet = start(answer=holding(release), threads=200)
    with held_calls(fleet, release, 200) as calls:
        release.set()
        assert all(call.result(timeout=30) for call in calls)


def test_too_much_metadata_fails_one_call_only(start: Start, release: threading.Event) -> None:
    """Metadata beyond gRPC's limit is the server's to refuse, and other calls of the connection go on."""
    fleet = start(answer=holding(release))
    with held_calls(fleet, release, 1) as calls, fleet.nginx.channel() as channel:
        # A gRPC server enforces its limit once both sides have exchanged settings.
        served_by(channel)
        failure = failure_of(channel, request_of("a"), metadata=[("x-long", "x" * 60_000)])
        release.set()
        assert calls[0].result(timeout=20)
    assert failure.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "metadata" in (failure.details() or "")


def test_the_callers_request_id_reaches_server_log_and_errors(start: Start) -> None:
    """A caller's x-request-id is the server's, the log's, and that of Nginx's own errors."""
    fleet = start()
    with fleet.nginx.channel() as channel:
        rerank_pb2_grpc.RerankServiceStub(channel).Rerank(
            request_of("a"), timeout=20, metadata=(("x-request-id", "order-4711"),)
        )
        assert fleet.servers[0].metadata_seen[0]["x-request-id"] == "order-4711"
        fleet.servers[0].stop()
        failure = failure_of(channel, request_of("a"), metadata=[("x-request-id", "order-4712")])
    assert metadata_of(failure)["x-request-id"] == "order-4712"
    # Nginx writes a call down after the client has its answer.
    logged = wait_until(lambda: fleet.nginx.calls(RERANK)[1:] and fleet.nginx.calls(RERANK), "the access log")
    assert [entry["request_id"] for entry in logged] == ["order-4711", "order-4712"]


def test_a_missing_or_strange_request_id_is_replaced(start: Start) -> None:
    """Without a request id, or with one that doesn't belong into a log, Nginx makes one up."""
    fleet = start()
    with fleet.nginx.channel() as channel:
        stub = rerank_pb2_grpc.RerankServiceStub(channel)
        stub.Rerank(request_of("a"), timeout=20)
        stub.Rerank(request_of("a"), timeout=20, metadata=(("x-request-id", 'a"b c'),))
        stub.Rerank(request_of("a"), timeout=20, metadata=(("x-request-id", "a" * 129),))
    made_up = [seen["x-request-id"] for seen in fleet.servers[0].metadata_seen]
    assert len(set(made_up)) == 3
    assert all(isinstance(each, str) and len(each) == 32 and each.isalnum() for each in made_up)


def test_the_access_log_tells_the_story_of_a_call(start: Start) -> None:
    """Each call is one JSON object with its status, its server and its times."""
    fleet = start()
    with fleet.nginx.channel() as channel:
        served_by(channel, timeout_s=20)
    entry = wait_until(lambda: fleet.nginx.calls(RERANK), "the access log")[0]
    assert entry["grpc_status"] == "0"
    assert entry["server"] == fleet.servers[0].address
    assert all(float(entry[name]) >= 0 for name in ("seconds", "server_seconds", "header_seconds"))
    assert entry["grpc_timeout"]


def test_what_is_neither_grpc_nor_served_is_refused(start: Start) -> None:
    """A browser on a path of gRPC gets 415; where no server speaks HTTP, everything else is 503."""
    fleet = start()
    trusting = ssl.create_default_context(cafile=str(fleet.nginx.certificate.root))
    connection = http.client.HTTPSConnection("localhost", fleet.nginx.port, context=trusting, timeout=10)
    for path, status in ((RERANK, 415), ("/", 503)):
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        assert response.status == status
    connection.close()


def test_a_reload_loses_no_call(start: Start) -> None:
    """While members are replaced again and again, every call is answered."""
    fleet = start(servers=2)
    first, second = (server.address for server in fleet.servers)
    finished = threading.Event()
    answered: list[str] = []

    def call_until_finished() -> None:
        with fleet.nginx.channel(RETRYING) as channel:
            while not finished.is_set():
                answered.append(served_by(channel))

    caller = threading.Thread(target=call_until_finished)
    caller.start()
    try:
        for members in ([first], [second], [first, second]):
            fleet.nginx.replace_servers(members)
            wait_until(partial(_more_than, answered, len(answered) + 20, caller), "calls to go on")
    finally:
        finished.set()
        caller.join(30)
    assert len(answered) > 60


def _more_than(answered: list[str], count: int, caller: threading.Thread) -> bool:
    return len(answered) > count or not caller.is_alive()
