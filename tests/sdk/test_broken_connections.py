"""Connections that break in the middle of an answer, under every name that gRPC gives to that."""

from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from rerank import ClientClosedError, Query, Ranking, RerankClient, RerankError, RetryPolicy, UnavailableError
from rerank._broken import is_broken_connection
from rerank._repeats import MOST_SENDINGS
from rerank.v1 import rerank_pb2 as wire

from tests.sdk.scoring_server import Fail, ScoringServer
from tests.sdk.twins import Connect, Twin
from tests.support.broken_peer import AFTER, HOW, Break, BrokenPeer, How
from tests.support.waiting import wait_until

# HTTP/2's NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR (Nginx, when its server dies), FLOW_CONTROL_ERROR
# and STREAM_CLOSED are INTERNAL to gRPC.
INTERNAL_CODES = (0, 1, 2, 3, 5)
HOW_UNKNOWN: tuple[How, ...] = ("reset", "no status", "garbage")
# gRPC repeats none of these: they are INTERNAL or UNKNOWN.
FINAL_TO_GRPC = [
    *(Break("nothing", "reset", code) for code in INTERNAL_CODES),
    *(Break(after, how, 2) for after in AFTER for how in HOW_UNKNOWN),
]
# Without a status a stream ends for gRPC only when the client has nothing more to say, either.
BREAKS_OF_STREAMS = [
    *(Break("nothing", "reset", code) for code in (*INTERNAL_CODES, 7, 8)),
    *(Break(after, how, 2) for after in AFTER for how in HOW if how != "no status"),
]
RESET = Break("headers", "reset", 2)


@pytest.mark.parametrize("step", FINAL_TO_GRPC, ids=str)
def test_a_call_outlives_a_connection_that_breaks(connect: Connect, step: Break) -> None:
    """A call is made again when its answer broke off, although gRPC would not do so."""
    with BrokenPeer([step, step]) as peer:
        ranking = connect(peer.target, retry=RetryPolicy(initial_backoff_s=0.001)).rerank("query", ["a", "b"])
        assert len(ranking) == 2
        assert peer.calls == 3


@pytest.mark.parametrize("step", BREAKS_OF_STREAMS, ids=str)
def test_a_stream_outlives_a_connection_that_breaks(connect: Connect, step: Break) -> None:
    """Queries are asked again on a new stream, whether or not the broken one had answered."""
    with BrokenPeer([step, step], streams=True) as peer:
        client = connect(peer.target, retry=RetryPolicy(initial_backoff_s=0.001))
        outcomes = dict(client.rerank_many([Query(number, "q", ["a"]) for number in range(5)]))
        assert sorted(outcomes) == [0, 1, 2, 3, 4]
        assert all(isinstance(outcome, Ranking) for outcome in outcomes.values()), outcomes
        assert peer.calls >= 3


def test_repeats_are_bounded(connect: Connect) -> None:
    """A call that breaks every time fails after the policy's number of attempts."""
    with BrokenPeer([RESET] * 9) as peer:
        client = connect(peer.target, retry=RetryPolicy(max_attempts=3, initial_backoff_s=0.001))
        with pytest.raises(UnavailableError, match="broke before the answer was complete") as caught:
            client.rerank("query", ["a"])
        assert peer.calls == 3
        assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.UNAVAILABLE, "CONNECTION_BROKEN")


def test_repeats_can_be_turned_off(connect: Connect) -> None:
    """With a policy of one attempt nothing is sent twice."""
    with BrokenPeer([RESET]) as peer:
        with pytest.raises(UnavailableError):
            connect(peer.target, retry=RetryPolicy(max_attempts=1)).rerank("query", ["a"])
        assert peer.calls == 1


def test_repeats_share_the_deadline(connect: Connect) -> None:
    """A repeat that could only begin after the deadline is not waited for."""
    with BrokenPeer([RESET] * 9) as peer:
        client = connect(peer.target, retry=RetryPolicy(initial_backoff_s=30, max_backoff_s=30))
        with pytest.raises(UnavailableError):
            client.rerank("query", ["a"], timeout_s=5)
        assert peer.calls == 1


def test_closing_the_client_ends_the_wait_for_a_repeat() -> None:
    """A call that waits to be made again fails at once when its client is closed."""
    with BrokenPeer([RESET] * 9) as peer, ThreadPoolExecutor(1) as threads:
        client = RerankClient(peer.target, retry=RetryPolicy(initial_backoff_s=20, max_backoff_s=20))
        call = threads.submit(client.rerank, "query", ["a"], timeout_s=300)
        wait_until(lambda: peer.calls == 1, "the first attempt")
        client.close()
        with pytest.raises(ClientClosedError):
            call.result(timeout=10)


def test_repeats_of_a_fleet_in_trouble_stop(connect: Connect) -> None:
    """When nothing but broken answers come back, calls are tried once: the load is not multiplied."""
    with BrokenPeer([RESET] * 10_000) as peer:
        client = connect(peer.target, retry=RetryPolicy(initial_backoff_s=0.001, max_backoff_s=0.001))
        for _ in range(60):
            with pytest.raises(UnavailableError):
                client.rerank("query", ["a"])
        before = peer.calls
        for _ in range(10):
            with pytest.raises(UnavailableError):
                client.rerank("query", ["a"])
        assert peer.calls - before == 10


def test_parts_are_repeated_one_by_one(connect: Connect) -> None:
    """Of a call in parts, only the part whose answer broke off is sent again."""
    with BrokenPeer([RESET]) as peer:
        ranking = connect(peer.target, max_request_documents=1).rerank("query", ["a", "b", "c"])
        assert len(ranking) == 3
        assert peer.calls == 4


def test_each_attempt_tells_its_number(connect: Connect, server: ScoringServer) -> None:
    """Servers can see which attempt at a request they get."""
    server.script = [Fail(grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2")] * 2
    connect(server.target, retry=RetryPolicy(initial_backoff_s=0.001)).rerank("query", ["a"])
    assert [seen.metadata["rerank-attempt"] for seen in server.seen] == ["0", "1", "2"]


def test_repeats_of_both_kinds_are_bounded_together(connect: Connect, server: ScoringServer) -> None:
    """A server that is busy for gRPC's attempts and then breaks gets three times the policy's attempts."""

    def worst(request: wire.RerankRequest, context: grpc.ServicerContext) -> wire.RerankResponse:
        previous = dict(context.invocation_metadata()).get("grpc-previous-rpc-attempts", "0")
        busy = int(previous) < RetryPolicy().max_attempts - 1
        code = grpc.StatusCode.UNAVAILABLE if busy else grpc.StatusCode.INTERNAL
        context.abort(code, "Received RST_STREAM with error code 2")
        raise AssertionError

    server.script = [worst] * 50
    client = connect(server.target, retry=RetryPolicy(initial_backoff_s=0.001, max_backoff_s=0.01))
    with pytest.raises(UnavailableError, match="broke before the answer was complete"):
        client.rerank("query", ["a"])
    assert len(server.seen) == MOST_SENDINGS * RetryPolicy().max_attempts == 12


def test_get_model_is_repeated_too(client: Twin, server: ScoringServer) -> None:
    """Repeats are for every unary method of the service."""
    server.script = [Fail(grpc.StatusCode.UNKNOWN, "Stream removed")]
    assert client.get_model().id == "scoring-server"


def test_a_servers_own_internal_error_is_final(client: Twin, server: ScoringServer) -> None:
    """What a server says itself is no broken connection, whatever its words."""
    told = wire.Error(code=13, reason="SCORING_FAILED", message="Stream removed")
    server.script = [Fail(grpc.StatusCode.INTERNAL, "Stream removed", error=told)]
    with pytest.raises(RerankError) as caught:
        client.rerank("query", ["a"])
    assert (caught.value.reason, len(server.seen)) == ("SCORING_FAILED", 1)


@pytest.mark.parametrize(
    "details",
    [
        "Stream removed",
        "Stream removed (RST_STREAM (Received RST_STREAM with error code 2))",
        "Stream removed (Failed parsing HTTP/2 (Frame size 9 is larger than max frame size 8))",
        "Received RST_STREAM with error code 2",
        "Internal error from Core",
        "stream terminated by RST_STREAM with error code: INTERNAL_ERROR",
        "Socket closed",
        "recvmsg:Connection reset by peer (104)",
        "sendmsg: Broken pipe (32)",
        "GOAWAY received; Error code: 2; Debug Text: ",
    ],
)
def test_the_names_of_a_broken_connection(details: str) -> None:
    """Every version's names count, if the code leaves it open and nobody else's words come first."""
    assert is_broken_connection(grpc.StatusCode.INTERNAL, details)
    assert is_broken_connection(grpc.StatusCode.UNKNOWN, details)
    assert not is_broken_connection(grpc.StatusCode.DEADLINE_EXCEEDED, details)
    assert not is_broken_connection(grpc.StatusCode.INTERNAL, f"the model says: {details}")
