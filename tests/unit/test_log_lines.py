"""What a log line may hold, and how often it may be said."""

import json
from typing import Any

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
