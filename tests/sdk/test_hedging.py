"""Hedged calls: a second attempt when the first is slow, within a budget."""

import threading
from collections import deque
from collections.abc import Iterator

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rerank import HedgePolicy, InvalidRequestError, RetryPolicy, UnavailableError
from rerank._hedging import HedgeBudget
from rerank._repeats import RepeatThrottle
from rerank._scatter import Attempt, Scatter
from rerank.v1 import rerank_pb2 as wire

from tests.sdk.scoring_server import Fail, Hang, ScoringServer, unscripted_answer
from tests.sdk.twins import Connect

ALWAYS = HedgePolicy(delay_s=0.05, budget=1.0)
ONCE = RetryPolicy(max_attempts=1)


@given(st.floats(0.001, 1.0), st.lists(st.booleans(), max_size=300))
def test_hedges_never_exceed_their_share(share: float, events: list[bool]) -> None:
    """At every moment there were at most `budget` hedges for each request."""
    budget = HedgeBudget(HedgePolicy(delay_s=0, budget=share))
    requests = hedges = 0
    for is_request in events:
        if is_request:
            budget.record_request()
            requests += 1
        else:
            hedges += budget.try_spend()
        assert hedges <= share * requests


def test_the_budget_is_used_to_the_last_hedge() -> None:
    """A budget of 5% allows exactly one hedge for twenty requests."""
    budget = HedgeBudget(HedgePolicy(delay_s=0))
    spent = []
    for _ in range(100):
        budget.record_request()
        spent.append(budget.try_spend())
    assert [number for number, hedged in enumerate(spent, 1) if hedged] == [20, 40, 60, 80, 100]


def test_quiet_hours_save_up_no_storm() -> None:
    """However many requests needed no hedge, few can be hedged in a row."""
    budget = HedgeBudget(HedgePolicy(delay_s=0, budget=1.0))
    for _ in range(1000):
        budget.record_request()
    assert sum(budget.try_spend() for _ in range(1000)) == 10


@given(
    requests=st.integers(0, 12),
    max_in_flight=st.integers(1, 5),
    budget=st.none() | st.floats(0.01, 1.0),
    choices=st.lists(st.integers(0, 10**6), min_size=100, max_size=100),
)
def test_every_request_gets_an_answer_within_bounds(
    requests: int, max_in_flight: int, budget: float | None, choices: list[int]
) -> None:
    """Whatever ends when, each request is answered once, and no more are out than allowed."""
    hedging = HedgeBudget(HedgePolicy(delay_s=1.0, budget=budget)) if budget else None
    scatter = Scatter(
        requests,
        max_in_flight=max_in_flight,
        retry=RetryPolicy(),
        throttle=RepeatThrottle(),
        ends_at=1e9,
        hedging=hedging,
    )
    chosen: Iterator[int] = iter(choices)
    running: set[Attempt] = set()
    answered: list[int] = []
    now = 0.0
    while not scatter.finished:
        started = scatter.due(now)
        assert not running.intersection(started)
        running.update(started)
        assert len({attempt.position for attempt in running}) <= max_in_flight
        choice = next(chosen, 0)
        wait_s = scatter.wait_s(now)
        if choice % 3 == 0 and wait_s is not None:
            now += wait_s
            continue
        attempt = sorted(running)[choice % len(running)]
        hedged = Attempt(attempt.position, 1 - attempt.number) in running
        running.discard(attempt)
        if choice % 3 == 1 and hedged:
            assert not scatter.failed(attempt, UnavailableError("gone"), now)
            continue
        scatter.succeeded(attempt)
        losers = scatter.abandoned()
        assert losers == {other for other in running if other.position == attempt.position}
        running -= losers
        answered.append(attempt.position)
        assert not scatter.is_running(attempt)
    assert not running
    assert sorted(answered) == list(range(requests))


def test_hedging_is_off_by_default(connect: Connect, server: ScoringServer) -> None:
    """Without a policy a slow answer is waited for."""
    answer = threading.Event()

    def slow(request: wire.RerankRequest, context: grpc.ServicerContext) -> wire.RerankResponse:
        answer.wait(timeout=0.3)
        return unscripted_answer(request)

    server.script = [slow]
    connect(server.target).rerank("query", ["a"])
    assert len(server.seen) == 1


def test_the_first_answer_wins_and_the_loser_is_cancelled(connect: Connect, server: ScoringServer) -> None:
    """When the first attempt hangs, the second one's answer is the call's, and the first is stopped."""
    hang = Hang()
    server.script = [hang]
    ranking = connect(server.target, hedge=ALWAYS).rerank("query", ["a", "b"], timeout_s=20)
    assert len(ranking) == 2
    assert hang.cancelled.wait(timeout=20)
    assert len(server.seen) == 2
    assert server.seen[0].request == server.seen[1].request


def test_an_answer_in_time_is_not_hedged(connect: Connect, server: ScoringServer) -> None:
    """No second attempt is made when the first answers before the delay."""
    client = connect(server.target, hedge=HedgePolicy(delay_s=20, budget=1.0))
    for _ in range(5):
        client.rerank("query", ["a"])
    assert len(server.seen) == 5


def test_without_budget_there_is_no_hedge(connect: Connect, server: ScoringServer) -> None:
    """A new client has earned no hedge yet, and a slow answer is waited for."""

    def slow(request: wire.RerankRequest, context: grpc.ServicerContext) -> wire.RerankResponse:
        threading.Event().wait(0.3)
        return unscripted_answer(request)

    server.script = [slow]
    client = connect(server.target, hedge=HedgePolicy(delay_s=0.01, budget=0.05))
    client.rerank("query", ["a"])
    assert len(server.seen) == 1


def test_a_failure_is_forgiven_while_the_other_attempt_is_out(
    connect: Connect, server: ScoringServer
) -> None:
    """An attempt that met an unavailable server does not fail the call if its twin may answer."""
    second_is_out = threading.Event()
    first_has_failed = threading.Event()

    def fail_late(request: wire.RerankRequest, context: grpc.ServicerContext) -> wire.RerankResponse:
        second_is_out.wait(timeout=20)
        context.add_callback(first_has_failed.set)
        Fail(grpc.StatusCode.UNAVAILABLE).abort(context, "gpu-0")
        raise AssertionError

    def answer(request: wire.RerankRequest, context: grpc.ServicerContext) -> wire.RerankResponse:
        second_is_out.set()
        first_has_failed.wait(timeout=20)
        return unscripted_answer(request)

    server.script = [fail_late, answer]
    client = connect(server.target, hedge=ALWAYS, retry=ONCE)
    assert len(client.rerank("query", ["a"], timeout_s=30)) == 1


def test_a_final_error_is_not_hedged_away(connect: Connect, server: ScoringServer) -> None:
    """An error that would meet any server ends the call at once, with both attempts."""
    hang = Hang()
    server.script = [hang, Fail(grpc.StatusCode.INVALID_ARGUMENT)]
    with pytest.raises(InvalidRequestError):
        connect(server.target, hedge=ALWAYS).rerank("query", ["a"], timeout_s=30)
    assert hang.cancelled.wait(timeout=20)


def test_when_both_attempts_fail_the_call_fails(connect: Connect, server: ScoringServer) -> None:
    """Two failures are a failure."""
    both_out = threading.Barrier(2)

    def fail_together(request: wire.RerankRequest, context: grpc.ServicerContext) -> wire.RerankResponse:
        both_out.wait(timeout=20)
        Fail(grpc.StatusCode.UNAVAILABLE).abort(context, "gpu-0")
        raise AssertionError

    server.script = [fail_together, fail_together]
    with pytest.raises(UnavailableError):
        connect(server.target, hedge=ALWAYS, retry=ONCE).rerank("query", ["a"], timeout_s=30)


def test_parts_are_hedged_one_by_one(connect: Connect, server: ScoringServer) -> None:
    """Of a call in parts, only the part that is slow is asked twice."""
    hang = Hang()
    server.script = [hang]
    client = connect(server.target, hedge=HedgePolicy(delay_s=0.5, budget=1.0), max_request_documents=1)
    client.rerank("query", ["a", "b", "c", "d"], timeout_s=30)
    assert len(server.seen) == 5
    asked = deque(seen.request.documents[0] for seen in server.seen)
    assert asked.count(asked[0]) == 2


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"delay_s": -1.0}, "delay_s"),
        ({"delay_s": float("nan")}, "delay_s"),
        ({"delay_s": 1.0, "budget": 0.0}, "budget"),
        ({"delay_s": 1.0, "budget": 1.5}, "budget"),
    ],
)
def test_a_policy_names_what_is_wrong_with_it(arguments: dict[str, float], field: str) -> None:
    """A policy that makes no sense can't be made."""
    with pytest.raises(ValueError, match=field):
        HedgePolicy(**arguments)
