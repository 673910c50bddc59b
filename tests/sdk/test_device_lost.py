"""Requests that were on a device when it died: one more server is asked, and no third."""

import itertools
import threading
from collections.abc import Iterator

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rerank import DeviceLostError, HedgePolicy, Query, Ranking, RetryPolicy
from rerank._hedging import HedgeBudget
from rerank._repeats import RepeatThrottle
from rerank._scatter import Attempt, Scatter
from rerank.v1 import rerank_pb2 as wire

from tests.sdk.scoring_server import Fail, Hang, ScoringServer, Step, unscripted_answer
from tests.sdk.twins import Connect, Twin

Requests = Iterator[wire.RerankStreamRequest]
Responses = Iterator[wire.RerankStreamResponse]

TOLD = wire.Error(code=14, reason="DEVICE_LOST", message="the device died while it scored this request")
# What servers send to whoever counts attempts.
LOST = Fail(grpc.StatusCode.UNAVAILABLE, error=TOLD, pushback_ms=-1)
QUICK = RetryPolicy(initial_backoff_s=0.001, max_backoff_s=0.05)
# Eight requests.
DOCUMENTS = [str(number) for number in range(1000)]


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


def test_a_call_that_finds_no_second_server_tells_of_the_device(client: Twin, server: ScoringServer) -> None:
    """Whoever repeats UnavailableErrors would send what killed a device to a third one."""
    server.script = [LOST, *[Fail(grpc.StatusCode.UNAVAILABLE)] * 9]
    with pytest.raises(DeviceLostError, match="may be the cause"):
        client.rerank("query", ["a"])


class Parts:
    """Steps for the parts of a long list, all under way when the first of them loses its device."""

    def __init__(self, parts: int) -> None:
        self.hangs = [Hang() for _ in range(parts - 1)]
        self.all_out = threading.Barrier(parts)
        self.running = 0
        self.most_running = 0
        self._lock = threading.Lock()

    def steps(self) -> list[Step]:
        return [self._lose, *map(self._hold, self.hangs)]

    def answer(self, request: wire.RerankRequest, context: grpc.ServicerContext) -> wire.RerankResponse:
        """Count how many are asked at once."""
        with self._lock:
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        threading.Event().wait(0.05)
        with self._lock:
            self.running -= 1
        return unscripted_answer(request)

    def _lose(self, request: wire.RerankRequest, context: grpc.ServicerContext) -> wire.RerankResponse:
        self.all_out.wait(timeout=20)
        LOST.abort(context, "gpu-0")
        raise AssertionError

    def _hold(self, hang: Hang) -> Step:
        def step(request: wire.RerankRequest, context: grpc.ServicerContext) -> wire.RerankResponse:
            self.all_out.wait(timeout=20)
            return hang(request, context)

        return step


def test_parts_that_lost_their_devices_together_are_one_loss(connect: Connect, server: ScoringServer) -> None:
    """However many parts were under way, one further request is sent in all."""
    all_out = threading.Barrier(8)

    def lost_together(request: wire.RerankRequest, context: grpc.ServicerContext) -> wire.RerankResponse:
        all_out.wait(timeout=20)
        LOST.abort(context, "gpu-0")
        raise AssertionError

    server.script = [*[lost_together] * 8, *[LOST] * 20]
    client = connect(server.target, retry=RetryPolicy(initial_backoff_s=0.1, max_backoff_s=0.1))
    with pytest.raises(DeviceLostError, match="may be the cause"):
        client.rerank("query", DOCUMENTS, timeout_s=30)
    assert len(server.seen) == 8 + 1


def test_parts_called_back_are_sent_one_by_one(connect: Connect, server: ScoringServer) -> None:
    """An innocent call gets its whole ranking, and never more than one device has it again."""
    parts = Parts(8)
    server.script = [*parts.steps(), *[parts.answer] * 8]
    ranking = connect(server.target, retry=QUICK).rerank("query", DOCUMENTS, timeout_s=30)
    assert sorted(ranking.documents) == sorted(DOCUMENTS)
    assert all(hang.cancelled.is_set() for hang in parts.hangs)
    assert parts.most_running == 1
    assert len(server.seen) == 8 + 8


def test_parts_that_were_answered_before_a_loss_are_kept(connect: Connect, server: ScoringServer) -> None:
    """Only what was under way is asked again."""
    server.script = [lambda request, _: unscripted_answer(request), LOST]
    client = connect(server.target, retry=QUICK, max_in_flight=1)
    assert len(client.rerank("query", DOCUMENTS)) == 1000
    assert len(server.seen) == 8 + 1


@given(
    requests=st.integers(1, 12),
    max_in_flight=st.integers(1, 5),
    hedged=st.booleans(),
    choices=st.lists(st.tuples(st.integers(0, 10**6), st.booleans()), min_size=100, max_size=100),
)
def test_no_call_knowingly_loses_a_third_device(
    requests: int, max_in_flight: int, hedged: bool, choices: list[tuple[int, bool]]
) -> None:
    """After a loss one attempt is under way at a time, but for a hedge, and the second loss ends the call."""
    scatter = Scatter(
        requests,
        max_in_flight=max_in_flight,
        retry=RetryPolicy(),
        throttle=RepeatThrottle(),
        ends_at=1e9,
        hedging=HedgeBudget(HedgePolicy(delay_s=0.0, budget=1.0)) if hedged else None,
    )
    chosen = iter(choices)
    running: set[Attempt] = set()
    losses, now = 0, 0.0
    while not scatter.finished:
        running.update(scatter.due(now))
        if losses:
            assert len({attempt.position for attempt in running}) <= 1
        if not running:
            now += scatter.wait_s(now) or 0.0
            continue
        which, dies = next(chosen, (0, False))
        attempt = sorted(running)[which % len(running)]
        running.discard(attempt)
        if dies:
            losses += 1
            assert losses <= 2
            error = scatter.failed(attempt, DeviceLostError("lost"), now)
            assert (error is not None) == (losses == 2)
            if error:
                return
        else:
            scatter.succeeded(attempt)
        running -= scatter.abandoned()
        assert all(map(scatter.is_running, running))
    assert not running


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
