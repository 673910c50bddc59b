"""Options: any value is taken or refused in one line, and what is taken can be worked with."""

import math
from typing import Any

import annotated_types
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from server.config import Settings, read_settings
from server.errors import ConfigurationError

NUMBERS = [name for name, field in Settings.model_fields.items() if field.annotation in (int, float)]
FLAGS = {
    name: "--" + name.removesuffix("_s").replace("_", "-")
    for name, field in Settings.model_fields.items()
    if field.annotation is not bool
}
EXTREME = ["nan", "inf", "-inf", "-1", "1e20", "1e300", "1e-300", "9" * 400, "9" * 5000, "", "0x10", "١٢"]

values = st.one_of(
    st.sampled_from(EXTREME),
    st.integers().map(str),
    st.floats().map(repr),
    st.text(max_size=300),
)


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_has_a_least_and_a_greatest_value(name: str) -> None:
    """An option without bounds ends in a traceback, or in a server that can't work."""
    bounds = {type(each) for each in Settings.model_fields[name].metadata}
    assert bounds & {annotated_types.Ge, annotated_types.Gt}
    assert bounds & {annotated_types.Le, annotated_types.Lt}


@settings(deadline=None)
@given(name=st.sampled_from(sorted(FLAGS)), value=values)
@example(name="token_budget", value="1e20")
@example(name="max_connection_age_s", value="1e300")
@example(name="drain_grace_s", value="nan")
@example(name="drain_delay_s", value="inf")
@example(name="server_name", value="ü")
@example(name="api_keys_file", value="x" * 100_000)
def test_any_value_is_taken_or_refused_in_one_line(name: str, value: str) -> None:
    """On the command line; the line names the option and is not longer than a reader's patience."""
    try:
        taken = read_settings([f"{FLAGS[name]}={value}"], environment={})
    except ConfigurationError as error:
        assert str(error).startswith(f"{FLAGS[name]}: ")
        assert len(str(error).splitlines()) == 1
        assert len(str(error)) < 500
    else:
        number = getattr(taken, name)
        assert not isinstance(number, float) or math.isfinite(number)


@settings(deadline=None)
@given(name=st.sampled_from(sorted(Settings.model_fields)), value=values)
def test_any_variable_is_taken_or_refused_in_one_line(name: str, value: str) -> None:
    """In the environment; an empty one is none."""
    variable = "RERANK_" + name.removesuffix("_s").upper()
    try:
        read_settings([], environment={variable: value})
    except ConfigurationError as error:
        assert str(error).startswith(f"{variable}: ")
        assert len(str(error).splitlines()) == 1


@pytest.mark.parametrize("name", NUMBERS)
def test_the_bounds_themselves_are_taken(name: str) -> None:
    """And nothing beyond them."""
    for each in Settings.model_fields[name].metadata:
        if isinstance(each, annotated_types.Ge | annotated_types.Le):
            least = isinstance(each, annotated_types.Ge)
            bound: Any = each.ge if isinstance(each, annotated_types.Ge) else each.le
            assert getattr(read_settings([f"{FLAGS[name]}={bound}"], environment={}), name) == bound
            with pytest.raises(ConfigurationError):
                read_settings([f"{FLAGS[name]}={bound - 1 if least else bound + 1}"], environment={})
