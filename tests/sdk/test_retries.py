"""What the channel does about attempts that fail: real attempts, real pushback."""

import threading
import time

import grpc
import pytest
from rerank import OverloadedError, RetryPolicy, UnavailableError
from rerank._retry import MOST_ATTEMPTS
from rerank.v1 import rerank_pb2 as wire

from tests.sdk.scoring_server import Fail, ScoringServer, Step, unscripted_answer
from tests.sdk.twins import Connect, Twin

UNAVAILABLE = Fail(grpc.StatusCode.UNAVAILABLE)
OVERLOADED = wire.Error(code=8, reason="OVERLOADED", message="busy")
OVERLOADED.retry_after.FromMilliseconds(1500)


@pytest.mark.parametrize("failures", [1, 2, 3])
@pytest.mark.parametrize(
    "code",
    [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED],
    ids=lambda code: code.name,
)
def test_attempts_that_fail_never_surface(
    client: Twin, server: ScoringServer, code: grpc.StatusCode, failures: int
) -> None:
    """A call survives up to three attempts that met a busy, draining or stopping server."""
    server.script = [Fail(code)] * failures
    assert len(client.rerank("query", ["a"])) == 1
    assert [seen.metadata.get("grpc-previous-rpc-attempts") for seen in server.seen] == [
        None,
        "1",
        "2",
        "3",
    ][: failures + 1]


def test_get_model_is_retried_too(client: Twin, server: ScoringServer) -> None:
    """Retries are for every unary method of the service."""
    server.script = [UNAVAILABLE, UNAVAILABLE]
    assert client.get_model().id == "scoring-server"


def test_after_the_last_attempt_the_error_says_so(client: Twin, server: ScoringServer) -> None:
    """When all attempts failed, the error names the status and the number of attempts."""
    server.script = [UNAVAILABLE] * 9
    with pytest.raises(UnavailableError, match=r"UNAVAILABLE: scripted \(after up to 4 attempts\)"):
        client.rerank("query", ["a"])
    assert len(server.seen) == 4


@pytest.mark.parametrize("attempts", range(1, MOST_ATTEMPTS + 1))
def test_the_number_of_attempts_is_the_policys(
    connect: Connect, server: ScoringServer, attempts: int
) -> None:
    """RetryPolicy.max_attempts is exactly how often a call is tried."""
    server.script = [UNAVAILABLE] * 9
    client = connect(server.target, retry=RetryPolicy(max_attempts=attempts, max_backoff_s=0.05))
    with pytest.raises(UnavailableError):
        client.rerank("query", ["a"])
    assert len(server.seen) == attempts


@pytest.mark.parametrize("backoff_s", [0.0001, 0.001])
def test_the_shortest_backoff_stalls_no_call(
    connect: Connect, server: ScoringServer, backoff_s: float
) -> None:
    """However short the pauses of a policy, calls go on after them."""
    client = connect(server.target, retry=RetryPolicy(initial_backoff_s=backoff_s, max_backoff_s=backoff_s))
    for _ in range(10):
        server.script = [UNAVAILABLE] * 2
        assert len(client.rerank("query", ["a"], timeout_s=5)) == 1


def test_pushback_is_honoured(client: Twin, server: ScoringServer) -> None:
    """A server that says when to come back is left alone until then."""
    arrived: list[float] = []

    def overloaded(request: wire.RerankRequest, context: grpc.ServicerContext) -> wire.RerankResponse:
        arrived.append(time.monotonic())
        Fail(grpc.StatusCode.RESOURCE_EXHAUSTED, pushback_ms=400).abort(context, "gpu-0")
        raise AssertionError

    def answer(request: wire.RerankRequest, context: grpc.ServicerContext) -> wire.RerankResponse:
        arrived.append(time.monotonic())
        return unscripted_answer(request)

    server.script = [overloaded, answer]
    client.rerank("query", ["a"])
    assert arrived[1] - arrived[0] >= 0.39


def test_pushback_of_minus_one_stops_retries(client: Twin, server: ScoringServer) -> None:
    """A server that says -1 is not asked again, and its reason arrives."""
    server.script = [Fail(grpc.StatusCode.RESOURCE_EXHAUSTED, error=OVERLOADED, pushback_ms=-1)]
    with pytest.raises(OverloadedError, match="busy") as caught:
        client.rerank("query", ["a"])
    assert len(server.seen) == 1
    assert caught.value.retry_after_s == 1.5


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    ],
    ids=lambda code: code.name,
)
def test_errors_that_no_retry_cures_are_not_retried(
    client: Twin, server: ScoringServer, code: grpc.StatusCode
) -> None:
    """Every other status is final at the first attempt."""
    server.script = [Fail(code)]
    with pytest.raises(Exception, match=r"scripted|did not answer"):
        client.rerank("query", ["a"])
    assert len(server.seen) == 1


@pytest.mark.parametrize("megabytes", [0.3, 5])
def test_large_requests_are_retried(connect: Connect, megabytes: float) -> None:
    """Requests beyond gRPC's default retry buffer of 256 KiB are kept and sent again."""
    with ScoringServer(options=(("grpc.max_receive_message_length", 2**24),)) as server:
        server.script = [UNAVAILABLE, UNAVAILABLE]
        client = connect(server.target, max_request_bytes=2**23)
        assert len(client.rerank("query", ["x" * int(megabytes * 1_000_000)])) == 1
        assert len(server.seen) == 3


def test_all_attempts_share_the_deadline(client: Twin, server: ScoringServer) -> None:
    """Later attempts get what is left of the time, and the deadline ends the waiting."""
    server.script = [Fail(grpc.StatusCode.UNAVAILABLE, pushback_ms=60_000)]
    with pytest.raises(TimeoutError):
        client.rerank("query", ["a"], timeout_s=0.5)
    assert len(server.seen) == 1


def test_many_calls_at_once_survive_the_death_of_a_server(connect: Connect, server: ScoringServer) -> None:
    """Forty calls that fail in the same moment are all retried; the throttle allows that."""
    together = threading.Barrier(40)

    def die(request: wire.RerankRequest, context: grpc.ServicerContext) -> wire.RerankResponse:
        together.wait(timeout=20)
        UNAVAILABLE.abort(context, "gpu-0")
        raise AssertionError

    steps: list[Step] = [die] * 40
    server.script = steps
    client = connect(server.target, max_request_documents=1, max_in_flight=40)
    assert len(client.rerank("query", [str(number) for number in range(40)])) == 40
    assert len(server.seen) == 80


def test_a_fleet_in_trouble_is_not_flooded(connect: Connect, server: ScoringServer) -> None:
    """When nothing but errors come back, retries stop and calls are tried once."""
    server.script = [UNAVAILABLE] * 10_000
    client = connect(server.target, retry=RetryPolicy(max_backoff_s=0.05))
    for _ in range(60):
        with pytest.raises(UnavailableError):
            client.rerank("query", ["a"])
    before = len(server.seen)
    for _ in range(10):
        with pytest.raises(UnavailableError):
            client.rerank("query", ["a"])
    assert len(server.seen) - before == 10


def test_a_server_that_comes_back_is_found_again(connect: Connect) -> None:
    """A client outlives a restart of its server on the same port."""
    with ScoringServer() as first:
        client = connect(first.target)
        client.rerank("query", ["a"])
    with pytest.raises(UnavailableError):
        client.rerank("query", ["a"])
    with ScoringServer(address=f"127.0.0.1:{first.port}") as second:
        client.wait_until_ready(timeout_s=20)
        client.rerank("query", ["a"])
        assert len(second.seen) == 1


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"max_attempts": 0}, "max_attempts"),
        ({"max_attempts": 6}, "max_attempts"),
        ({"initial_backoff_s": 0}, "initial_backoff_s"),
        ({"initial_backoff_s": 2, "max_backoff_s": 1}, "initial_backoff_s"),
    ],
)
def test_a_policy_names_what_is_wrong_with_it(arguments: dict[str, float], field: str) -> None:
    """A policy that gRPC would refuse or quietly change can't be made."""
    with pytest.raises(ValueError, match=field):
        RetryPolicy(**arguments)  # type: ignore[arg-type]
