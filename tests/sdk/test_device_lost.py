"""Requests that were on a device when it died: one more server is asked, and no third."""

import itertools
import threading
from collections.abc import Iterator

import grpc
import pytest
from rerank import DeviceLostError, HedgePolicy, Query, Ranking, RetryPolicy
from rerank.v1 import rerank_pb2 as wire

from tests.sdk.scoring_server import Fail, ScoringServer, unscripted_answer
from tests.sdk.twins import Connect, Twin

Requests = Iterator[wire.RerankStreamRequest]
Responses = Iterator[wire.RerankStreamResponse]

TOLD = wire.Error(code=14, reason="DEVICE_LOST", message="the device died while it scored this request")
# What servers send to whoever counts attempts.
LOST = Fail(grpc.StatusCode.UNAVAILABLE, error=TOLD, pushback_ms=-1)
QUICK = RetryPolicy(initial_backoff_s=0.001, max_backoff_s=0.05)


def lost(item: wire.RerankStreamRequest) -> wire.RerankStreamResponse:
    return wire.RerankStreamResponse(id=item.id, error=TOLD)


def answered(item: wire.RerankStreamRequest) -> wire.RerankStreamResponse:
    return wire.RerankStreamResponse(id=item.id, response=unscripted_answer(item.request))


def test_one_more_server_is_asked(client: Twin, server: ScoringServer) -> None:
    """A request that was innocent is answered by the next server; both learn which attempt they get."""
    server.script = [LOST]
    assert len(client.rerank("query", ["a"])) == 1
    assert [seen.metadata["rerank-attempt"] for seen in server.seen] == ["0", "1"]


def test_no_third_server_is_asked(client: Twin, server: ScoringServer) -> None:
    """After two devices the caller is told that the request may be the cause."""
    server.script = [LOST] * 9
    with pytest.raises(DeviceLostError, match="may be the cause") as caught:
        client.rerank("query", ["a"], request_id="id-1")
    assert len(server.seen) == 2
    error = caught.value
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "DEVICE_LOST")
    assert (error.request_id, error.servers) == ("id-1", ("gpu-0",))


def test_without_retries_no_second_server_is_asked(connect: Connect, server: ScoringServer) -> None:
    """A policy of one attempt holds here, too."""
    server.script = [LOST] * 9
    with pytest.raises(DeviceLostError):
        connect(server.target, retry=RetryPolicy(max_attempts=1)).rerank("query", ["a"])
    assert len(server.seen) == 1


def test_hedging_does_not_ask_a_third_server(connect: Connect, server: ScoringServer) -> None:
    """A hedge that is out when the first attempt's device dies is the one more attempt."""
    both_out = threading.Barrier(2)

    def lost_together(request: wire.RerankRequest, context: grpc.ServicerContext) -> wire.RerankResponse:
        both_out.wait(timeout=20)
        LOST.abort(context, "gpu-0")
        raise AssertionError

    server.script = [lost_together, lost_together, LOST, LOST]
    client = connect(server.target, hedge=HedgePolicy(delay_s=0.02, budget=1.0), retry=QUICK)
    with pytest.raises(DeviceLostError):
        client.rerank("query", ["a"], timeout_s=30)
    assert len(server.seen) == 2


def test_a_repeat_is_not_hedged(connect: Connect, server: ScoringServer) -> None:
    """Once a device was lost there is one further attempt, however slow that is."""

    def slow(request: wire.RerankRequest, context: grpc.ServicerContext) -> wire.RerankResponse:
        threading.Event().wait(0.5)
        return unscripted_answer(request)

    server.script = [LOST, slow]
    client = connect(server.target, hedge=HedgePolicy(delay_s=0.1, budget=1.0), retry=QUICK)
    assert len(client.rerank("query", ["a"], timeout_s=30)) == 1
    assert len(server.seen) == 2


def test_of_a_call_in_parts_only_the_lost_part_is_repeated(client: Twin, server: ScoringServer) -> None:
    """The other parts go on, and their answers are kept."""
    server.script = [LOST]
    assert len(client.rerank("query", [str(number) for number in range(500)])) == 500
    assert len(server.seen) == 5


def test_a_query_of_a_stream_is_asked_twice_at_most(client: Twin, server: ScoringServer) -> None:
    """The query that loses each device gets the error, and those around it their rankings."""
    asked: list[str] = []

    def poisoned(requests: Requests) -> Responses:
        for item in requests:
            guilty = item.request.query == "guilty"
            asked.extend([item.id] if guilty else [])
            yield lost(item) if guilty else answered(item)

    server.stream_script = [poisoned] * 9
    names = ["first", "guilty", "last"]
    outcomes = dict(client.rerank_many([Query(name, name, ["a"]) for name in names]))
    assert isinstance(outcomes.pop("guilty"), DeviceLostError)
    assert all(isinstance(outcome, Ranking) for outcome in outcomes.values()), outcomes
    assert len(asked) == 2


def test_an_innocent_query_of_a_stream_is_answered(client: Twin, server: ScoringServer) -> None:
    """Queries that shared the batch are asked once more, on another stream."""
    server.stream_script = [lambda requests: map(lost, itertools.islice(requests, 3))]
    outcomes = dict(client.rerank_many([Query(number, "q", ["a"]) for number in range(5)]))
    assert all(isinstance(outcome, Ranking) for outcome in outcomes.values()), outcomes
    assert len(outcomes) == 5
    assert server.streams_opened == 2
