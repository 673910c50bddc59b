"""The race: everybody under the same conditions, and nobody stops the others."""

import math
from collections.abc import Mapping

import pytest

from benchmarks.protocol import RaceRules, Score, largest_difference, race
from benchmarks.workload import Request
from tests.benchmarks.fakes import FakeContender, SilentWatcher

REQUESTS = [Request("q", ("a", "b")), Request("r", ("c",))]


def rules(**changes: object) -> RaceRules:
    return RaceRules(**{"warm_up": REQUESTS[:1], "plan": lambda score: REQUESTS, "rounds": 3, **changes})  # type: ignore[arg-type]


def test_contenders_take_turns_and_the_start_moves_on() -> None:
    """Each round has everybody once, and not always in the same order; one round warms up."""
    journal: list[str] = []
    race([FakeContender(name, journal=journal) for name in "abc"], rules(), SilentWatcher())
    assert "".join(journal) == "abc" + "abc" + "bca" + "cab" + "abc"


def test_the_best_round_counts_and_the_spread_is_kept() -> None:
    """The fake gets faster: runs take 1, 1/2, 1/3 of a second and so on, the first two to warm up."""
    timed = race([FakeContender("a")], rules(), SilentWatcher()).timed["a"]
    assert timed.rounds_s == [1 / 3, 1 / 4, 1 / 5]
    assert timed.best_s == 1 / 5
    assert timed.spread == pytest.approx(2 / 3)


def test_whoever_fails_is_out_with_the_reason_and_the_others_go_on() -> None:
    """At the start as in the middle; and all of them are closed in the end."""
    contenders = [
        FakeContender("at the start", fails_in=0),
        FakeContender("later", fails_in=2),
        FakeContender("fine"),
    ]
    result = race(contenders, rules(), SilentWatcher())
    assert set(result.timed) == {"fine"}
    assert len(result.timed["fine"].rounds_s) == 3
    assert result.absent == dict.fromkeys(("at the start", "later"), "RuntimeError: out of paper")
    assert not any(contender.entered for contender in contenders)


def test_a_race_of_nobody_has_no_results() -> None:
    """When all are out before the start there is nothing to divide by."""
    result = race([FakeContender("a", fails_in=0)], rules(), SilentWatcher())
    assert not result.timed
    assert not result.requests


def test_what_belongs_to_a_round_runs_in_each_and_the_end_sees_everybody_alive() -> None:
    """The peak is measured between the rounds, the quality while the models are loaded."""
    rounds: list[int] = []
    seen: list[str] = []
    contender = FakeContender("a")

    def afterwards(scores: Mapping[str, Score]) -> None:
        assert contender.entered
        seen.extend(scores)

    race([contender], rules(each_round=lambda: rounds.append(1), afterwards=afterwards), SilentWatcher())
    assert len(rounds) == 3
    assert seen == ["a"]


def test_scores_that_are_missing_or_not_a_number_are_infinitely_wrong() -> None:
    """They must never pass for equal."""
    assert largest_difference([[1.0, 2.0]], [[1.5, 2.0]]) == 0.5
    assert largest_difference([[1.0]], [[1.0, 2.0]]) == math.inf
    assert largest_difference([[math.nan]], [[1.0]]) == math.inf
    assert largest_difference([], []) == 0.0
