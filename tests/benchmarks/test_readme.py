"""The table and the picture are made from the results, and of nothing else."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from benchmarks.goals import GOALS
from benchmarks.plot import render_plot
from benchmarks.readme import BEGIN, END, README, render_results, update_readme
from benchmarks.results import RESULTS, merge, read

MACHINE = {
    "cpu": "abacus <2 rows>",
    "cores": 2,
    "vector_units": ["beads"],
    "memory_gib": 1,
    "system": "Wood",
    "python": "3.11",
    "versions": {"torch": "2.13.0"},
    "commit": "abc",
}
SPEED = {"pairs_per_s": 10.0, "tokens_per_s": 2000.0, "gflops": 5.0, "spread": 0.04, "rounds_s": [1.0]}
WORKLOAD = {
    "pairs": 384,
    "requests": 24,
    "mean_tokens": 140.6,
    "p5_tokens": 38,
    "p95_tokens": 441,
    "concurrent_clients": 8,
}
WAITS = {
    "idle_p50_ms": 100.0,
    "idle_p99_ms": 110.0,
    "busy_p50_ms": 200.0,
    "busy_p99_ms": 300.0,
    "busy_requests": 9,
}


def results(**parts: Any) -> dict[str, Any]:
    parts = {"figures": {}, "ratios": {}, "absent": {}, **parts}
    return merge(None, machine=MACHINE, date="2026-01-02T03:04:05", command="python -m benchmarks", **parts)


def full() -> dict[str, Any]:
    return results(
        figures={
            "workload": WORKLOAD,
            "predict": {**SPEED, "what": "the reference"},
            "engine": {**SPEED, "what": "ours", "pairs_per_s": 21.5, "largest_difference": 5.7e-6},
            "fairness": {
                "what": "ten beside a thousand",
                "fair": WAITS,
                "fifo": {**WAITS, "busy_p99_ms": 9000.0},
            },
            "cache": {
                "what": "all seen before",
                "pairs_per_s": 250_000.0,
                "cache_alone_pairs_per_s": 400_000.0,
            },
            "latency": {
                "what": "all seen before",
                "http_direct": {"p50_ms": 1.234, "p99_ms": 5.678},
            },
        },
        ratios={"engine_vs_predict": 2.15, "small_request_p99_vs_idle": 4.5},
        absent={"infinity": "it can't be installed: no network\nand more"},
    )


def test_rows_hold_the_figures_and_whether_goals_are_reached() -> None:
    """A reader sees value, goal and date side by side."""
    text = render_results(full())
    assert "| `engine` | ours | 21.5 | 2,000 | 5 | 4% | 5.7e-06 | 2026-01-02 |" in text
    assert "| 2.15 | ≥ 1.9 | yes | 2026-01-02 |" in text
    assert "| 4.5 | ≤ 4 | no | 2026-01-02 |" in text
    assert "| `--scheduling fifo` | 100 | 110 | 200 | 9,000 | 9 |" in text
    assert "| `http_direct` | 1.23 | 5.68 |" in text
    assert "`python -m benchmarks`, 2026-01-02T03:04:05, commit abc" in text


def test_what_was_not_measured_has_no_row_and_what_failed_has_a_reason() -> None:
    """An empty cell could be taken for a zero."""
    text = render_results(full())
    assert "service_vs_fastapi" not in text
    assert "`infinity` is missing: it can't be installed: no network\n" in text
    assert "and more" not in text
    assert "|" not in render_results(results())


def test_only_what_lies_between_the_markers_changes(tmp_path: Path) -> None:
    """Rendering twice changes nothing more."""
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    update_readme(full(), readme)
    once = readme.read_text()
    update_readme(full(), readme)
    assert readme.read_text() == once
    assert once.startswith("before\n")
    assert once.endswith("after\n")
    assert "old" not in once


def test_lost_markers_are_an_error(tmp_path: Path) -> None:
    """Nothing is appended somewhere instead."""
    readme = tmp_path / "README.md"
    readme.write_text("no markers")
    with pytest.raises(ValueError, match="lost its markers"):
        update_readme(full(), readme)


def test_the_picture_is_xml_with_a_bar_for_each_figure() -> None:
    """Two speeds and three waits; names are escaped."""
    root = ElementTree.fromstring(render_plot(full()))
    bars = [node for node in root if node.tag.endswith("rect") and node.get("fill") != "#ffffff"]
    assert len(bars) == 5
    assert float(bars[1].get("width", "0")) > float(bars[0].get("width", "0"))


def test_the_readme_in_the_repository_is_what_its_results_render_to() -> None:
    """Nobody typed a figure into it."""
    committed = read(RESULTS / "latest.json")
    if committed is None:
        pytest.skip("no results yet")
    between = README.read_text().partition(BEGIN)[2].partition(END)[0]
    assert between == f"\n\n{render_results(committed)}\n"
    assert set(committed["ratios"]) <= set(GOALS)
    assert all(isinstance(value, int | float) for value in committed["ratios"].values())
