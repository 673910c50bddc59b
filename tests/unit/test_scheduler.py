"""The scheduler's promises, held against whatever order of events hypothesis finds."""

import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from server.engine.scheduler import Priority, Scheduler


@dataclass(eq=False)
class Pair:
    owner: int
    tokens: int
    started: bool = False


def drain(scheduler: Scheduler[Pair], now_s: float = 0.0, limit: int = 100_000) -> list[list[Pair]]:
    batches = []
    while scheduler.has_work():
        batches.append(scheduler.next_batch(now_s).pairs)
        assert len(batches) < limit, "the scheduler makes no progress"
    return batches


def fill(scheduler: Scheduler[Pair], number: int, sizes: list[int], **options: object) -> list[Pair]:
    pairs = [Pair(number, size) for size in sizes]
    scheduler.open(number, **{"priority": Priority.INTERACTIVE, **options})  # type: ignore[arg-type]
    scheduler.add(number, pairs)
    return pairs


class SchedulerMachine(RuleBasedStateMachine):
    """Requests arrive, cancel, expire and are served in any order."""

    budget = 100
    most_held = 500

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.scheduler: Scheduler[Pair] = Scheduler(self.budget, most_held_tokens=self.most_held)
        self.numbers = 0
        self.deadlines: dict[int, float] = {}
        self.added: dict[int, list[Pair]] = {}
        self.scored: list[Pair] = []

    @rule(
        sizes=st.lists(st.integers(1, 150), max_size=20),
        priority=st.sampled_from(Priority),
        patience_s=st.one_of(st.just(math.inf), st.floats(0, 20)),
        expected_tokens=st.integers(0, 2000),
    )
    def arrive(self, sizes: list[int], priority: Priority, patience_s: float, expected_tokens: int) -> None:
        number = self.numbers
        self.numbers += 1
        self.deadlines[number] = self.now_s + patience_s
        self.added[number] = fill(
            self.scheduler,
            number,
            sizes,
            priority=priority,
            deadline_s=self.now_s + patience_s,
            expected_tokens=expected_tokens,
        )

    @precondition(lambda self: self.added)
    @rule(data=st.data())
    def tokenised(self, data: st.DataObject) -> None:
        self.scheduler.expect_no_more(data.draw(st.sampled_from(sorted(self.added))))

    @precondition(lambda self: self.added)
    @rule(data=st.data())
    def share_pairs(self, data: st.DataObject) -> None:
        """A new request waits for the same pairs as an older one."""
        other = data.draw(st.sampled_from(sorted(self.added)))
        number = self.numbers
        self.numbers += 1
        self.deadlines[number] = math.inf
        self.scheduler.open(number, priority=Priority.INTERACTIVE)
        shared = [pair for pair in self.added[other] if not pair.started]
        self.scheduler.add(number, shared)
        self.added[number] = shared

    @precondition(lambda self: self.added)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.added)))
        waiting = sum(pair.tokens for pair in self.added.pop(number) if not pair.started)
        assert self.scheduler.close(number) == waiting

    @rule(passed_s=st.floats(0, 5))
    def serve(self, passed_s: float) -> None:
        self.now_s += passed_s
        before = {id(pair) for pair in self.scored}
        batch = self.scheduler.next_batch(self.now_s)
        assert all(id(pair) not in before for pair in batch.pairs), "a pair was scored twice"
        assert len({id(pair) for pair in batch.pairs}) == len(batch.pairs)
        assert batch.tokens == sum(pair.tokens for pair in batch.pairs)
        assert batch.tokens <= self.scheduler.token_budget or len(batch.pairs) == 1, "the budget was not kept"
        for number in batch.expired:
            assert self.deadlines[number] <= self.now_s
            self.added.pop(number)
        assert all(self.deadlines[number] > self.now_s for number in self.added), "expired work was kept"
        self.scored += batch.pairs

    @invariant()
    def the_sums_are_those_of_all_requests(self) -> None:
        """Running sums equal what adding up everything that waits would give."""
        waiting = self.scheduler._requests.values()
        left = [max(r.waiting_tokens, r.expected_tokens - r.served_tokens) for r in waiting]
        assert self.scheduler.queued_tokens == sum(min(tokens, self.most_held) for tokens in left)
        for priority in Priority:
            for size in (1, 100, 101, 350, 10**6):
                end = self.scheduler.token_budget
                while end <= size - 1:
                    end *= 2
                ahead = sum(
                    tokens
                    if request.priority < priority
                    else min(tokens, max(0, end - request.served_tokens)) * (request.priority == priority)
                    for request, tokens in zip(waiting, left, strict=True)
                )
                expected = min(sum(left), math.ceil((ahead + size) / (1 - 1 / 8)) - size)
                assert self.scheduler.tokens_ahead(priority, size) == expected

    @rule(tokens=st.sampled_from([60, 100, 140]))
    def change_the_budget(self, tokens: int) -> None:
        self.scheduler.token_budget = tokens

    @invariant()
    def nothing_is_lost(self) -> None:
        waiting = {id(pair) for pairs in self.added.values() for pair in pairs if not pair.started}
        assert self.scheduler.has_work() == bool(waiting)

    def teardown(self) -> None:
        self.now_s = 0.0
        for number, deadline_s in self.deadlines.items():
            if deadline_s < math.inf and number in self.added:
                self.added.pop(number)
                self.scheduler.close(number)
        for batch in drain(self.scheduler):
            self.scored += batch
        assert all(pair.started for pairs in self.added.values() for pair in pairs), "a pair was lost"


TestSchedulerMachine = SchedulerMachine.TestCase


def test_ten_documents_do_not_wait_behind_a_thousand() -> None:
    """A small request that arrives late is in the very next batch."""
    scheduler: Scheduler[Pair] = Scheduler(2000)
    fill(scheduler, 0, [200] * 1000)
    scheduler.next_batch(0.0)
    small = fill(scheduler, 1, [150] * 10)
    scheduler.next_batch(0.0)
    assert all(pair.started for pair in small)


def test_first_come_first_served_makes_them_wait() -> None:
    """The switch for comparison does what its name says."""
    scheduler: Scheduler[Pair] = Scheduler(2000, first_come_first_served=True)
    fill(scheduler, 0, [200] * 100)
    small = fill(scheduler, 1, [150] * 10)
    for _ in range(10):
        assert not any(pair.started for pair in small)
        scheduler.next_batch(0.0)
    scheduler.next_batch(0.0)
    assert all(pair.started for pair in small)


@given(
    old_pairs=st.integers(1, 60),
    old_size=st.integers(1, 120),
    old_priority=st.sampled_from(Priority),
    new_size=st.integers(1, 100),
)
def test_no_request_starves_under_a_flow_of_new_ones(
    old_pairs: int, old_size: int, old_priority: Priority, new_size: int
) -> None:
    """An old request ends although fresh INTERACTIVE ones fill every batch."""
    budget, aged_share = 100, 1 / 8
    scheduler: Scheduler[Pair] = Scheduler(budget, aged_share=aged_share)
    old = fill(scheduler, 0, [old_size] * old_pairs, priority=old_priority)
    # Its share, plus the rounding of pairs that don't divide the credit evenly.
    promised_batches = math.ceil(old_pairs * old_size / (aged_share * budget)) + 2
    for number in range(1, promised_batches + 1):
        fill(scheduler, number, [new_size] * (budget // new_size + 1))
        scheduler.next_batch(0.0)
    assert all(pair.started for pair in old)


def test_interactive_goes_before_batch() -> None:
    """Offline work gets what interactive work leaves, plus the share of the oldest."""
    scheduler: Scheduler[Pair] = Scheduler(100)
    batch = fill(scheduler, 0, [10] * 100, priority=Priority.BATCH)
    fill(scheduler, 1, [10] * 9)
    pairs = scheduler.next_batch(0.0).pairs
    assert [pair.owner for pair in pairs].count(1) == 9
    assert sum(pair.started for pair in batch) == 1


def test_the_earliest_deadline_goes_first_among_equals() -> None:
    """Of requests with equal service the most urgent is chosen."""
    scheduler: Scheduler[Pair] = Scheduler(100, aged_share=0)
    fill(scheduler, 0, [100], deadline_s=30.0)
    fill(scheduler, 1, [100], deadline_s=10.0)
    fill(scheduler, 2, [100], deadline_s=20.0)
    assert [scheduler.next_batch(0.0).pairs[0].owner for _ in range(3)] == [1, 2, 0]


def test_requests_of_equal_size_are_finished_one_by_one() -> None:
    """Sharing every batch evenly would make all of them late."""
    scheduler: Scheduler[Pair] = Scheduler(100, aged_share=0)
    for number in range(3):
        fill(scheduler, number, [50, 50])
    assert [{pair.owner for pair in batch} for batch in drain(scheduler)] == [{0}, {1}, {2}]


def test_expired_requests_are_reported_and_cost_nothing() -> None:
    """What is too late is dropped at the moment of choice."""
    scheduler: Scheduler[Pair] = Scheduler(100)
    fill(scheduler, 0, [10, 20], deadline_s=5.0)
    batch = scheduler.next_batch(5.0)
    assert (batch.pairs, batch.expired, batch.dropped_tokens) == ([], [0], 30)
    assert scheduler.queued_tokens == 0


def test_a_pair_longer_than_the_budget_runs_alone() -> None:
    """It must run some day, and nothing else should suffer from it."""
    scheduler: Scheduler[Pair] = Scheduler(100)
    fill(scheduler, 0, [500, 10])
    assert [[pair.tokens for pair in batch] for batch in drain(scheduler)] == [[500], [10]]


@given(
    waiting=st.lists(
        st.tuples(st.lists(st.integers(1, 100), min_size=1, max_size=30), st.sampled_from(Priority)),
        max_size=8,
    ),
    sizes=st.lists(st.integers(1, 100), min_size=1, max_size=20),
    priority=st.sampled_from(Priority),
    served_batches=st.integers(0, 5),
)
def test_tokens_ahead_is_never_too_optimistic_by_more_than_a_few_batches(
    waiting: list[tuple[list[int], Priority]], sizes: list[int], priority: Priority, served_batches: int
) -> None:
    """Admission may trust the estimate: with no later arrivals the request is done by then."""
    budget = 100
    scheduler: Scheduler[Pair] = Scheduler(budget)
    for number, (pair_sizes, other) in enumerate(waiting):
        fill(scheduler, number, pair_sizes, priority=other)
    for _ in range(served_batches):
        scheduler.next_batch(0.0)
    ahead = scheduler.tokens_ahead(priority, sum(sizes))
    mine = fill(scheduler, len(waiting), sizes, priority=priority)
    spent = 0
    while not all(pair.started for pair in mine):
        spent += scheduler.next_batch(0.0).tokens
    # Batches are not cut at the end of a request, and large pairs leave gaps.
    assert spent <= 2 * (ahead + sum(sizes)) + 2 * budget


@pytest.mark.parametrize("priority", Priority)
def test_an_idle_scheduler_has_nothing_ahead(priority: Priority) -> None:
    """The first request of all waits for nobody."""
    scheduler: Scheduler[Pair] = Scheduler(100)
    assert scheduler.tokens_ahead(priority, 1000) == 0
    assert not scheduler.has_work()
    assert scheduler.next_batch(0.0).pairs == []
