"""What a log line may hold, and how often it may be said."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.ops.log_lines import (
    LINES_PER_WINDOW,
    MAX_KINDS,
    MAX_TRACEBACK_CHARACTERS,
    MAX_VALUE_CHARACTERS,
    WINDOW_S,
    Repetition,
    bound_values,
)

anything = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def bounded(**event: Any) -> Any:
    return bound_values(None, "", event)


def test_long_values_keep_both_ends() -> None:
    """And say how much is missing."""
    value = bounded(error="a" * 5_000_000 + "z" * 5_000_000)["error"]
    assert len(value) < MAX_VALUE_CHARACTERS + 100
    assert value.startswith("aaa")
    assert value.endswith("zzz")
    assert "9,999,000 characters left out" in value


def test_tracebacks_may_be_longer() -> None:
    """They are what an error is understood by."""
    assert bounded(exception="x" * MAX_TRACEBACK_CHARACTERS)["exception"] == "x" * MAX_TRACEBACK_CHARACTERS
    assert len(bounded(exception="x" * 10**6)["exception"]) < MAX_TRACEBACK_CHARACTERS + 100


@settings(deadline=None)
@given(value=anything)
def test_whatever_is_logged_becomes_a_line(value: Any) -> None:
    """Of bounded length, and of nothing that JSON doesn't have."""
    assert len(json.dumps(bounded(value=value))) < 20 * MAX_VALUE_CHARACTERS


def test_what_repeats_is_let_through_a_few_times_a_second_and_counted() -> None:
    """Other kinds of lines are not affected, and neither is the next second."""
    repetition = Repetition()
    assert sum(repetition.admits("flood", 100.0) for _ in range(1000)) == LINES_PER_WINDOW
    assert repetition.admits("another", 100.5)
    assert repetition.admits("flood", 100.0 + WINDOW_S)
    assert repetition.take_left_out() == {"flood": 1000 - LINES_PER_WINDOW}
    assert repetition.take_left_out() == {}


def test_lines_that_all_differ_are_bounded_together() -> None:
    """A flood does not get through by saying something else each time, nor does it cost memory."""
    repetition = Repetition()
    through = sum(repetition.admits(f"line {number}", 100.0) for number in range(100_000))
    assert through <= MAX_KINDS + LINES_PER_WINDOW
    assert len(repetition.take_left_out()) <= MAX_KINDS + 1


@pytest.mark.timeout(20)
def test_a_finaliser_may_log_while_a_line_is_counted() -> None:
    """The garbage collector runs it on the same thread, anywhere: it is counted and nobody waits for ever."""
    repetition = Repetition()
    logged: list[bool] = []

    class Collecting(str):
        """A kind whose look-up runs such a finaliser."""

        def __hash__(self) -> int:
            logged.append(repetition.admits("of a finaliser", 100.0))
            return hash(str(self))

    assert repetition.admits(Collecting("of the caller"), 100.0)
    assert all(logged)
    assert sum(repetition.admits("of the caller", 100.0) for _ in range(100)) == LINES_PER_WINDOW - 1


def test_a_value_that_can_not_be_described_is_named_by_its_type() -> None:
    """Its own code fails, and not whoever logs it."""

    class Broken:
        def __repr__(self) -> str:
            raise AttributeError("half made")

    assert bounded(value=[Broken(), 1])["value"] == ["<Broken without a repr: AttributeError>", 1]
