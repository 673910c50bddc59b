"""What is kept of runs: each figure with its own date, and never two machines in one file."""

import json
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine
from benchmarks.processes import REPOSITORY
from benchmarks.results import merge, read, rounded, write

MACHINE = {"cpu": "abacus", "cores": 2, "vector_units": [], "memory_gib": 1, "commit": "abc"}
OTHER = {**MACHINE, "cpu": "slide rule"}


def run(
    old: dict[str, Any] | None, date: str, machine: dict[str, Any] = MACHINE, **parts: Any
) -> dict[str, Any]:
    parts = {"figures": {}, "ratios": {}, "absent": {}, **parts}
    return merge(old, machine=machine, date=date, command=f"bench {date}", **parts)


def test_one_part_replaces_its_own_figures_and_keeps_the_others_with_their_date() -> None:
    """That is what --only is for."""
    first = run(None, "monday", figures={"a": {"x": 1.0}, "b": {"x": 2.0}}, ratios={"a_vs_b": 0.5})
    second = run(first, "tuesday", figures={"b": {"x": 4.0}}, ratios={})
    assert second["figures"] == {"a": {"x": 1.0}, "b": {"x": 4.0}}
    assert second["ratios"] == {"a_vs_b": 0.5}
    assert {name: source["date"] for name, source in second["measured"].items()} == {
        "a": "monday",
        "b": "tuesday",
        "a_vs_b": "monday",
    }


def test_another_machine_starts_anew() -> None:
    """Figures of two machines in one table would say nothing."""
    first = run(None, "monday", figures={"a": {"x": 1.0}}, ratios={"r": 1.0})
    second = run(first, "tuesday", OTHER, figures={"b": {"x": 2.0}})
    assert set(second["figures"]) == {"b"}
    assert second["ratios"] == {}
    assert second["machine"]["cpu"] == "slide rule"


def test_what_was_missing_is_no_longer_once_it_is_measured() -> None:
    """And what is missing now is named with the reason."""
    first = run(None, "monday", absent={"a": "no network", "b": "no luck"})
    second = run(first, "tuesday", figures={"a": {"x": 1.0}}, absent={"c": "no time"})
    assert second["absent"] == {"b": "no luck", "c": "no time"}


def test_reasons_name_no_folder_of_this_machine() -> None:
    """Error messages often do."""
    why = f"{REPOSITORY}/benchmarks/x.py and {Path.home()}/.cache"
    assert run(None, "monday", absent={"a": why})["absent"] == {"a": "./benchmarks/x.py and ~/.cache"}


def test_numbers_are_rounded_all_through_and_stay_valid_json(tmp_path: Path) -> None:
    """Five digits are more than a benchmark knows; JSON has no infinity."""
    assert rounded({"a": [1.23456789, 7], "b": {"c": float("inf")}}) == {"a": [1.2346, 7], "b": {"c": "inf"}}
    path = tmp_path / "results" / "latest.json"
    results = run(None, "monday", figures={"a": {"x": 123456.789, "y": float("nan")}})
    write(path, results)
    assert read(path) == results == json.loads(path.read_text())
    assert read(tmp_path / "nothing.json") is None


def test_the_machine_is_described_without_naming_it() -> None:
    """Processor, cores and versions; no host, no user, no path."""
    machine = describe_machine()
    assert machine["cpu"]
    assert machine["cores"] >= 1
    assert "torch" in machine["versions"]
    assert str(Path.home()) not in json.dumps(machine)
