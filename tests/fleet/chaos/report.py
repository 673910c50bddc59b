"""What a run says: a table for people, and JSON for the record."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe_machine, is_same_machine
from benchmarks.results import RESULTS, now, rounded
from tests.fleet.chaos.runner import Outcome

__all__ = ["figures_of", "outcome_table", "print_trouble", "save"]

RESULTS_FILE = RESULTS / "chaos.json"


def outcome_table(outcomes: Sequence[Outcome]) -> Table:
    """One row for each scenario and layer."""
    table = Table(title="What callers saw while the fleet was broken", title_justify="left")
    table.add_column("layer")
    table.add_column("scenario")
    for heading in ("requests", "a second", "failed", "wrong", "late", "p50 ms", "p99 ms", "max ms"):
        table.add_column(heading, justify="right")
    table.add_column("broken attempts", justify="right")
    table.add_column("", overflow="fold")
    for outcome in outcomes:
        tally = outcome.tally
        table.add_row(
            outcome.layer,
            outcome.scenario.name,
            f"{tally.requests:,}",
            f"{tally.calls_per_s:.0f}",
            *(f"[bold red]{count}[/]" if count else "0" for count in (tally.failed, tally.wrong, tally.late)),
            *(f"{tally.percentile_ms(percent):.0f}" for percent in (50, 99)),
            f"{1000 * max(tally.latencies_s):.0f}",
            "" if outcome.broken_attempts is None else str(outcome.broken_attempts),
            _verdict(outcome),
        )
    return table


def figures_of(outcome: Outcome) -> dict[str, Any]:
    """A scenario's figures, as chaos.json keeps them."""
    tally = outcome.tally
    figures: dict[str, Any] = {
        "requests": tally.requests,
        "requests_per_s": tally.calls_per_s,
        "failed": tally.failed,
        "wrong": tally.wrong,
        "late": tally.late,
        "p50_ms": tally.percentile_ms(50),
        "p99_ms": tally.percentile_ms(99),
        "max_ms": 1000 * max(tally.latencies_s),
    }
    if outcome.broken_attempts is not None:
        figures["broken_attempts"] = outcome.broken_attempts
    if tally.errors:
        figures["errors"] = tally.describe_errors()
    if outcome.layer == "l4" and outcome.scenario.weaker_at_l4:
        figures["weaker_because"] = outcome.scenario.weaker_at_l4
    return figures


def save(
    part: str, figures: Mapping[str, Mapping[str, Any]], command: str, path: Path = RESULTS_FILE
) -> None:
    """Write some figures of a part of chaos.json; all others stay, unless another machine made them.

    Every entry says when and how it was measured, since one run rarely makes them all.
    """
    machine = describe_machine()
    kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if not kept or not is_same_machine(kept["machine"], machine):
        kept = {}
    source = {"date": now(), "command": command, "commit": machine["commit"]}
    entries = {name: {**rounded(dict(each)), **source} for name, each in figures.items()}
    kept = {**kept, "machine": machine, part: {**kept.get(part, {}), **entries}}
    path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n")


def print_trouble(console: Console, outcomes: Sequence[Outcome]) -> None:
    """Say of each broken promise what happened."""
    for outcome in outcomes:
        if not outcome.kept_the_promise:
            console.print(f"  {outcome.describe()}", markup=False, highlight=False, soft_wrap=True)


def _verdict(outcome: Outcome) -> str:
    if outcome.kept_the_promise:
        return "[green]none lost[/]"
    if outcome.layer == "l4" and outcome.scenario.weaker_at_l4:
        return f"[yellow]weaker here:[/] {outcome.scenario.weaker_at_l4}"
    return "[bold red]broken promise[/]"
