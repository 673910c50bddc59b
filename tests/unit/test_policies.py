"""Admission, budget, estimate and cache: pure policies and their promises."""

import asyncio
import math
from contextlib import ExitStack

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.admission import Admission, Throughput
from server.engine.budget import MIN_BUDGET_TOKENS, TokenBudget
from server.engine.estimate import TokenEstimate
from server.engine.held_bytes import FREE_BYTES, HeldBytes
from server.engine.pair_cache import ENTRY_BYTES, PairCache, PairKeys, PairScore
from server.engine.scheduler import Priority
from server.errors import Overloaded
from server.models.base import EncodedDocument, EncodedPair, EncodedQuery, Windowing


def admit(admission: Admission, **numbers: object) -> None:
    given_numbers = {
        "priority": Priority.INTERACTIVE,
        "tokens": 100,
        "queued_tokens": 0,
        "tokens_ahead": 0,
        "running_tokens": 0,
        "batch_tokens": 0,
        "time_left_s": None,
    }
    admission.check(**{**given_numbers, **numbers})  # type: ignore[arg-type]


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    """The pause fits the backlog that has to go first."""
    admission = Admission(10_000, Throughput(100.0))
    with pytest.raises(Overloaded, match="queue is full") as refusal:
        admit(admission, queued_tokens=10_000, tokens=200)
    assert refusal.value.retry_after_s == pytest.approx(2.0)


def test_an_empty_queue_takes_a_request_of_any_size() -> None:
    """It is queued in parts, so no later moment would suit it better."""
    admit(Admission(1000, Throughput(100.0)), tokens=5_000_000)


@given(
    sizes=st.lists(st.integers(1, 10**9), max_size=50),
    batch=st.lists(st.booleans(), min_size=50, max_size=50),
    small=st.integers(1, 1000 // 32),
)
def test_a_small_interactive_request_finds_room_beside_any_others(
    sizes: list[int], batch: list[bool], small: int
) -> None:
    """Neither BATCH work nor large requests fill the queue, however many are admitted."""
    admission = Admission(1000, Throughput(100.0))
    queued = 0
    for tokens, is_batch in zip(sizes, batch, strict=False):
        if tokens <= 1000 // 32 and not is_batch:
            continue
        priority = Priority.BATCH if is_batch else Priority.INTERACTIVE
        try:
            admit(admission, priority=priority, tokens=tokens, queued_tokens=queued)
        except Overloaded:
            continue
        queued += min(tokens, admission.most_held_tokens)
    admit(admission, tokens=small, queued_tokens=queued)


def test_interactive_work_finds_half_of_the_queue_beside_batch_work() -> None:
    """Offline work is told so when its half is full."""
    admission = Admission(1000, Throughput(100.0))
    with pytest.raises(Overloaded, match="500 for BATCH requests"):
        admit(admission, priority=Priority.BATCH, tokens=100, queued_tokens=450)
    admit(admission, tokens=100, queued_tokens=450)


def test_what_can_not_be_done_in_time_is_refused_at_once() -> None:
    """The estimated wait is held against the time that is left."""
    admission = Admission(10_000, Throughput(100.0))
    admit(admission, queued_tokens=500, tokens_ahead=500, tokens=100, time_left_s=6.7)
    with pytest.raises(Overloaded, match=r"deadline leaves 6\.50 s"):
        admit(admission, queued_tokens=500, tokens_ahead=500, tokens=100, time_left_s=6.5)


def test_only_work_that_goes_first_counts_against_the_deadline() -> None:
    """A small request is welcome while a large one waits behind it."""
    admit(Admission(10_000, Throughput(100.0)), queued_tokens=5000, tokens_ahead=100, time_left_s=3.0)


@given(st.lists(st.floats(10, 1e6), min_size=1, max_size=5), st.integers(1, 100_000))
def test_throughput_converges_to_what_it_sees(speeds: list[float], batch_tokens: int) -> None:
    """After some memory's worth of computing, only the latest speed is left."""
    throughput = Throughput(123.0)
    for speed in speeds:
        for _ in range(400):
            throughput.record(batch_tokens, max(batch_tokens / speed, 0.2))
    assert throughput.tokens_per_second == pytest.approx(min(speeds[-1], batch_tokens / 0.2), rel=0.05)


def test_the_budget_halves_and_recovers_slowly() -> None:
    """Out of memory costs half; each twenty good batches earn five percent back."""
    budget = TokenBudget(1000)
    budget.shrink(900)
    assert budget.tokens == 450
    for _ in range(20):
        budget.succeed()
    assert 450 < budget.tokens < 500
    for _ in range(1000):
        budget.succeed()
    assert budget.tokens == 1000


@given(st.integers(MIN_BUDGET_TOKENS, 10_000), st.lists(st.integers(1, 20_000)))
def test_the_budget_stays_between_its_bounds(configured: int, failures: list[int]) -> None:
    """Whatever fails, the budget never exceeds the configured one nor falls to nothing."""
    budget = TokenBudget(configured)
    for tokens in failures:
        budget.shrink(tokens)
        assert MIN_BUDGET_TOKENS <= budget.tokens <= configured


def test_blanks_do_not_poison_the_estimate() -> None:
    """A megabyte that holds hardly any token says nothing of other texts."""
    estimate = TokenEstimate(512)
    query = EncodedQuery(np.zeros(2, np.int32), np.zeros(1, np.int32))
    document = EncodedDocument((EncodedPair.of(np.zeros(4, np.int32), 2),), truncated=False)
    estimate.learn(query, [" " * 2**20], [document])
    assert estimate.characters_per_token == pytest.approx(4.0, rel=0.1)


@given(st.lists(st.integers(0, 10 * FREE_BYTES), max_size=30))
def test_what_is_held_together_stays_within_its_room(sizes: list[int]) -> None:
    """Small requests are always let in, and a larger one than the room only alone."""
    room = 5 * FREE_BYTES
    held = HeldBytes(room, what="wait", option="--room")
    with ExitStack() as stack:
        taken: list[int] = []
        for size in sizes:
            try:
                stack.enter_context(held.hold(size))
            except Overloaded as refusal:
                assert size > FREE_BYTES
                assert "--room" in refusal.message
                continue
            taken.append(max(0, size - FREE_BYTES))
        assert sum(taken) <= room or len([size for size in taken if size]) == 1
    with held.hold(10 * room):
        pass


async def test_room_can_be_waited_for() -> None:
    """Whoever can wait is not refused."""
    held = HeldBytes(FREE_BYTES, what="wait", option="--room")
    with held.hold(2 * FREE_BYTES):
        waiting = asyncio.create_task(held.wait_for_room(2 * FREE_BYTES))
        await asyncio.sleep(0)
        assert not waiting.done()
    await asyncio.wait_for(waiting, 5)


def test_the_estimate_follows_the_texts() -> None:
    """Texts with one character per token make later estimates four times larger."""
    estimate = TokenEstimate(512)
    query = EncodedQuery(np.zeros(2, np.int32), np.zeros(1, np.int32))
    before = estimate.of("q", ["x" * 100], Windowing())
    documents = [EncodedDocument((EncodedPair.of(np.zeros(103, np.int32), 2),), truncated=False)] * 1000
    estimate.learn(query, ["x" * 100] * 1000, documents)
    assert estimate.characters_per_token == pytest.approx(1.0)
    assert estimate.of("q", ["x" * 100], Windowing()) > 3 * before


def test_the_estimate_knows_that_long_documents_are_cut_or_chunked() -> None:
    """A document beyond the model costs the model's limit, or that of its windows."""
    estimate = TokenEstimate(512)
    assert estimate.of("q", ["x" * 1_000_000], Windowing()) <= 512
    assert 5 * 512 <= estimate.of("q", ["x" * 1_000_000], Windowing(max_windows=10)) <= 10 * 512


@given(
    st.floats(width=32, allow_nan=False),
    st.integers(0, 2**32 - 1),
    st.booleans(),
    st.none() | st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
)
def test_packed_scores_survive(
    logit: float, tokens: int, truncated: bool, span: tuple[int, int] | None
) -> None:
    """Packing loses nothing."""
    score = PairScore(logit, tokens, truncated, span)
    assert PairScore.unpack(score.pack()) == score


@given(st.lists(st.tuples(*[st.text(max_size=3)] * 4), min_size=2, max_size=2, unique=True))
def test_different_inputs_have_different_keys(inputs: list[tuple[str, str, str, str]]) -> None:
    """No boundary between fingerprint, query, instruction and document can be moved."""
    keys = [
        PairKeys(fingerprint, query, instruction, Windowing()).of([document])
        for fingerprint, query, instruction, document in inputs
    ]
    assert keys[0] != keys[1]


def test_keys_depend_on_how_documents_are_cut() -> None:
    """Another window is another score."""
    windowings = [
        Windowing(),
        Windowing(max_document_tokens=7),
        Windowing(max_windows=4),
        Windowing(overlap=0.5),
    ]
    assert len({PairKeys("f", "q", "", windowing).of(["d"])[0] for windowing in windowings}) == len(
        windowings
    )


def test_the_cache_forgets_the_least_recently_used() -> None:
    """Bytes are the bound; what was asked for lately stays."""
    cache = PairCache(3 * ENTRY_BYTES)
    for name in (b"a", b"b", b"c"):
        cache.put(name, PairScore(1.0, 1, False))
    cache.get_many([b"a"])
    cache.put(b"d", PairScore(2.0, 1, False))
    assert [score is not None for score in cache.get_many([b"a", b"b", b"c", b"d"])] == [
        True,
        False,
        True,
        True,
    ]
    assert cache.used_bytes <= 3 * ENTRY_BYTES


def test_a_cache_of_no_bytes_remembers_nothing() -> None:
    """Zero switches it off."""
    cache = PairCache(0)
    cache.put(b"a", PairScore(math.pi, 1, False))
    assert cache.get_many([b"a"]) == [None]
