"""Figures and ratios: nothing that was not measured, and nothing that compares the unequal."""

import pytest

from benchmarks.figures import Measured, add_race, peak_figure
from benchmarks.peak import PeakRound
from benchmarks.protocol import Contender, Race, RaceRules, race
from benchmarks.shape import EncoderShape
from benchmarks.workload import Request
from tests.benchmarks.fakes import FakeContender, SilentWatcher

SHAPE = EncoderShape(hidden=4, inner=8, layers=2, max_tokens=16)
REQUESTS = [Request("q", ("a", "b")), Request("r", ("c", "d"))]
TOKENS = [10, 12, 8, 10]


def measured(*contenders: Contender, peak: bool = False) -> Measured:
    result = Measured()
    if peak:
        result.figures["peak"] = peak_figure(
            [
                PeakRound({"1x4x4": 120.0, "1x8x8": 80.0}, "1x4x4", 100.0),
                PeakRound({"1x4x4": 50.0, "1x8x8": 90.0}, "1x8x8", 85.0),
            ]
        )
    rules = RaceRules(REQUESTS, plan=lambda score: REQUESTS, rounds=1)
    add_race(result, race(contenders, rules, SilentWatcher()), TOKENS, SHAPE)
    return result


def test_ratios_are_quotients_of_pairs_per_second() -> None:
    """The third run of a fake that says 6 s, the one that is timed, takes 2 s: two pairs a second."""
    result = measured(FakeContender("predict", 6.0), FakeContender("engine", 3.0))
    assert result.figures["predict"]["pairs_per_s"] == 2.0
    assert result.figures["engine"]["tokens_per_s"] == 40.0
    assert result.ratios == {"engine_vs_predict": 2.0}


def test_a_ratio_needs_both_of_its_sides() -> None:
    """A peer that could not start leaves no trace but the reason."""
    result = measured(
        FakeContender("predict"), FakeContender("service"), FakeContender("infinity", fails_in=0)
    )
    assert "service_vs_infinity" not in result.ratios
    assert "infinity" not in result.figures
    assert "out of paper" in result.absent["infinity"]


def test_other_scores_are_not_compared_in_speed() -> None:
    """Except int8, whose scores are meant to differ and whose quality is measured instead."""
    result = measured(
        FakeContender("predict"),
        FakeContender("engine", 0.5, logit=0.6),
        FakeContender("int8", 0.25, logit=0.7),
    )
    assert "engine_vs_predict" not in result.ratios
    assert result.figures["engine"]["largest_difference"] == pytest.approx(0.1)
    assert "away from those of predict" in result.absent["engine"]
    assert result.ratios["int8_vs_predict"] == 4.0


def test_the_engine_is_held_against_the_best_that_any_size_kept_up() -> None:
    """In the best round; short tries don't count, and of the engine only real tokens' arithmetic does."""
    result = measured(FakeContender("predict"), FakeContender("engine", 3.0), peak=True)
    gflops = sum(map(SHAPE.pair_flops, TOKENS)) / 1e9
    assert result.figures["peak"]["gflops"] == 100.0
    assert result.figures["peak"]["gflops_by_size"] == {"1x4x4": 120.0, "1x8x8": 90.0}
    assert result.ratios["engine_vs_peak"] == pytest.approx(gflops / 100.0)


def test_arithmetic_of_a_pair_is_counted_by_hand() -> None:
    """One layer of width 2 and inner width 3 on 5 tokens, and a head of 2 by 3."""
    shape = EncoderShape(hidden=2, inner=3, layers=1, max_tokens=16)
    projections = 4 * (2 * 5 * 2 * 2)
    attention = 2 * (2 * 5 * 5 * 2)
    feed_forward = 2 * (2 * 5 * 2 * 3)
    assert shape.pair_flops(5) == projections + attention + feed_forward + 2 * 2 * 3


def test_nothing_is_figured_out_of_no_race() -> None:
    """Without anybody there are no ratios."""
    result = Measured()
    add_race(result, Race(REQUESTS, {}, {}), TOKENS, SHAPE)
    assert not result.ratios
