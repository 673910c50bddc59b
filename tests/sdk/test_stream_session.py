"""The book-keeping of streams against servers that do anything at any time."""

from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rerank import (
    DeadlineExceededError,
    DeviceLostError,
    OverloadedError,
    ProtocolError,
    Query,
    Ranking,
    RerankOptions,
    RetryPolicy,
    UnavailableError,
)
from rerank._settings import ClientSettings, begin_call, client_settings
from rerank._stream import StreamSession
from rerank._stream_events import Answered, Asked, Broke, Event, SourceEnded
from rerank.v1 import rerank_pb2 as wire

from tests.sdk.scoring_server import unscripted_answer

MAX_ATTEMPTS = RetryPolicy().max_attempts
Outcomes = list[tuple[Any, Any]]


def new_session(timeout_s: float = 1e6, **settings: Any) -> StreamSession[Any, str]:
    checked: ClientSettings = client_settings("localhost:1", **settings)
    call = begin_call(checked, timeout_s=timeout_s, request_id="id", api_key=None)
    return StreamSession(
        text=None,
        options=RerankOptions(),
        settings=checked,
        limits=checked.limits,
        call=call,
        spread=lambda low, high: high,
    )


def answered(item: wire.RerankStreamRequest) -> wire.RerankStreamResponse:
    return wire.RerankStreamResponse(id=item.id, response=unscripted_answer(item.request))


def refused(item: wire.RerankStreamRequest, reason: str, code: int) -> wire.RerankStreamResponse:
    return wire.RerankStreamResponse(id=item.id, error=wire.Error(code=code, reason=reason))


@given(data=st.data())
def test_every_query_has_exactly_one_outcome(data: st.DataObject) -> None:
    """Whatever breaks, expires, repeats or comes late, each query ends once and none is lost."""
    session = new_session(timeout_s=data.draw(st.sampled_from([3.0, 1e6])), max_request_documents=2)
    now = 0.0
    asked = 0
    generation = 0
    on_stream: dict[str, wire.RerankStreamRequest] = {}
    stale: list[Answered] = []
    outcomes: Outcomes = []

    def handle(event: Event | None) -> None:
        outcomes.extend(session.handle(event, now))

    for action in data.draw(
        st.lists(st.sampled_from(["ask", "answer", "busy", "drain", "break", "late", "wait"]), max_size=60)
    ):
        for item in session.due(now):
            if session.generation != generation:
                generation = session.generation
                stale += [Answered(generation - 1, answered(old)) for old in on_stream.values()]
                on_stream.clear()
            assert item.id not in on_stream, "asked again while it is out"
            on_stream[item.id] = item
        if action == "ask":
            handle(Asked(Query(asked, "q", ["a"] * data.draw(st.integers(0, 5)))))
            asked += 1
        elif action == "wait":
            now += session.wait_s(now) or 0.0
            handle(None)
        elif action == "late" and stale:
            handle(stale.pop())
        elif action == "break" and session.generation == generation and outcomes:
            # At most one break between two answers, so that the session never gives up.
            stale += [Answered(generation, answered(old)) for old in on_stream.values()]
            if on_stream:
                handle(Answered(generation, answered(on_stream.popitem()[1])))
            handle(Broke(generation, UnavailableError("broken")))
            on_stream.clear()
        elif on_stream and session.generation == generation:
            item = on_stream.pop(data.draw(st.sampled_from(sorted(on_stream))))
            response = {
                "busy": refused(item, "OVERLOADED", 8),
                "drain": refused(item, "DRAINING", 14),
            }.get(action, answered(item))
            handle(Answered(generation, response))

    handle(SourceEnded())
    for _ in range(1000):
        if session.finished:
            break
        for item in session.due(now):
            handle(Answered(session.generation, answered(item)))
        for item in on_stream.values():
            handle(Answered(session.generation, answered(item)))
        on_stream.clear()
        now += session.wait_s(now) or 0.0
        handle(None)
    assert session.finished
    assert sorted(id for id, _ in outcomes) == list(range(asked))
    for _, outcome in outcomes:
        assert isinstance(outcome, Ranking | DeadlineExceededError | OverloadedError | UnavailableError)


def test_breaks_in_a_row_are_waited_out_longer_each_time() -> None:
    """The pause before a stream is opened again doubles, as the policy says."""
    session = new_session()
    session.handle(Asked(Query(1, "q", ["a"])), 0.0)
    pauses = []
    now = 0.0
    for generation in range(3):
        assert len(session.due(now)) == 1
        session.handle(Broke(generation, UnavailableError("broken")), now)
        assert session.due(now) == []
        pause = session.wait_s(now)
        assert pause is not None
        pauses.append(round(pause, 6))
        now += pause
    assert pauses == [0.06, 0.12, 0.24]


def test_an_idle_stream_that_ends_costs_nothing() -> None:
    """A stream that breaks while nobody waits is forgotten; the next query opens another."""
    session = new_session()
    for generation in range(10):
        session.handle(Asked(Query(generation, "q", ["a"])), 0.0)
        [item] = session.due(0.0)
        assert session.generation == generation
        [(_, outcome)] = session.handle(Answered(generation, answered(item)), 0.0)
        assert isinstance(outcome, Ranking)
        session.handle(Broke(generation, UnavailableError("idle for too long")), 0.0)


def test_a_query_that_is_out_at_every_break_is_given_up() -> None:
    """Streams that break go on being opened while they answer, but not for ever for one query."""
    session = new_session()
    session.handle(Asked(Query("deadly", "q", ["a"])), 0.0)
    now, outcomes = 0.0, []
    for generation in range(9):
        session.handle(Asked(Query(generation, "q", ["a"])), now)
        items = session.due(now)
        outcomes += session.handle(Answered(session.generation, answered(items[-1])), now)
        outcomes += session.handle(Broke(session.generation, UnavailableError("broken")), now)
        now += 10.0
    told = dict(outcomes)
    assert isinstance(told.pop("deadly"), UnavailableError)
    assert sorted(told) == list(range(9))
    assert [id for id, _ in outcomes].index("deadly") == MAX_ATTEMPTS


def test_a_break_ends_a_query_that_has_lost_a_device() -> None:
    """A server that dies without a word is the second server of a query that lost a device before."""
    session = new_session()
    session.handle(Asked(Query("deadly", "q", ["a"])), 0.0)
    [item] = session.due(0.0)
    assert session.handle(Answered(0, refused(item, "DEVICE_LOST", 14)), 0.0) == []
    [item] = session.due(100.0)
    [(_, outcome)] = session.handle(Broke(session.generation, UnavailableError("broken")), 100.0)
    assert isinstance(outcome, DeviceLostError)


def test_all_shards_of_a_query_lose_two_devices_at_most() -> None:
    """What one stream tells of several shards is one loss; any shard's on the next stream is the second."""
    session = new_session(max_request_documents=1)
    session.handle(Asked(Query("deadly", "q", ["a", "b", "c"])), 0.0)
    first, second, _ = session.due(0.0)
    assert session.handle(Answered(0, refused(first, "DEVICE_LOST", 14)), 0.0) == []
    assert session.handle(Answered(0, refused(second, "DEVICE_LOST", 14)), 0.0) == []
    never_lost = session.due(100.0)[-1]
    assert session.generation == 1
    [(_, outcome)] = session.handle(Answered(1, refused(never_lost, "DEVICE_LOST", 14)), 100.0)
    assert isinstance(outcome, DeviceLostError)
    assert session.due(200.0) == []


def test_answers_that_nobody_asked_for_end_the_call() -> None:
    """A server that goes on answering without a question costs a bounded amount of work."""
    session = new_session()
    session.handle(Asked(Query(1, "q", ["a"])), 0.0)
    session.due(0.0)
    unasked = Answered(0, wire.RerankStreamResponse(id="7.0", response=wire.RerankResponse()))
    with pytest.raises(ProtocolError, match="never asked"):
        list(map(session.handle, [unasked] * 1000, [0.0] * 1000))


def test_late_answers_are_no_surplus() -> None:
    """However many queries expired before their answers came, these end no call."""
    session = new_session(timeout_s=1.0)
    for number in range(1000):
        session.handle(Asked(Query(number, "q", ["a"])), 0.0)
    items = session.due(0.0)
    assert len(session.handle(None, 2.0)) == 1000
    for item in items:
        assert session.handle(Answered(0, answered(item)), 2.0) == []


def test_ids_that_nobody_gave_are_ignored() -> None:
    """A server that makes up ids disturbs nobody."""
    session = new_session()
    session.handle(Asked(Query(1, "q", ["a"])), 0.0)
    session.due(0.0)
    for id in ("", "7", "0.1", "0.0.0", "x.y", "-1.0", "٣.0", "9" * 10_000 + ".0"):
        response = wire.RerankStreamResponse(id=id, response=wire.RerankResponse())
        assert session.handle(Answered(0, response), 0.0) == []
    assert not session.finished


def test_the_servers_own_pause_is_kept() -> None:
    """A query that was refused with retry_after is not sent before."""
    session = new_session()
    session.handle(Asked(Query(1, "q", ["a"])), 0.0)
    [item] = session.due(0.0)
    response = refused(item, "OVERLOADED", grpc.StatusCode.RESOURCE_EXHAUSTED.value[0])
    response.error.retry_after.FromSeconds(7)
    session.handle(Answered(0, response), 0.0)
    assert session.due(6.9) == []
    assert len(session.due(7.0)) == 1
