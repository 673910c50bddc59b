"""`make chaos`: every scenario at length, at both layers, as a table and as chaos.json."""

import argparse
import shlex
import sys
import tempfile
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from rich.console import Console

from deploy.local.certificate import make_certificate
from tests.fleet.chaos.fleet import ChaosFleet
from tests.fleet.chaos.hedging import with_a_frozen_server
from tests.fleet.chaos.overload import LONG_S, overload
from tests.fleet.chaos.report import figures_of, outcome_table, print_trouble, save
from tests.fleet.chaos.runner import Outcome, run_scenario
from tests.fleet.chaos.scenarios import LONG, SCENARIOS, SHORT, Effort, Scenario

__all__ = ["main"]

EXTRAS = ("hedging", "overload")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; 0 when every promise was kept."""
    options = _parser().parse_args(arguments)
    # Rows that wrap can't be read; a log is wide enough.
    console = Console(width=None if sys.stdout.isatty() else 180)
    given = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "tests.fleet.chaos", *given])
    chosen = [scenario for scenario in SCENARIOS if not options.only or scenario.name in options.only]
    effort = SHORT if options.short else LONG
    kept = True
    with tempfile.TemporaryDirectory(prefix="rerank-chaos-") as scratch:
        folder = Path(scratch)
        for layer in options.layer or ("l7", "l4"):
            outcomes = run_layer(layer, chosen, effort, folder, console, command)
            if outcomes:
                console.print(outcome_table(outcomes))
                print_trouble(console, outcomes)
                kept &= all(
                    outcome.kept_the_promise or (layer == "l4" and outcome.scenario.weaker_at_l4)
                    for outcome in outcomes
                )
        if not options.only or "hedging" in options.only:
            figures = with_a_frozen_server(folder / "hedging", make_certificate(folder / "hedging")).figures()
            console.print("one of four servers frozen:", figures)
            save("hedging", figures, command)
        if not options.only or "overload" in options.only:
            overloaded = overload(folder / "overload", make_certificate(folder / "overload"), LONG_S)
            console.print("ten times the capacity:", overloaded.figures())
            save("overload", {"ten times the capacity": overloaded.figures()}, command)
    return 0 if kept else 1


def run_layer(
    layer: str, scenarios: Sequence[Scenario], effort: Effort, folder: Path, console: Console, command: str
) -> list[Outcome]:
    """Run scenarios, those that want as many servers on one fleet."""
    certificate = make_certificate(folder / layer)
    outcomes = []
    for servers, group in groupby(sorted(scenarios, key=_servers), key=_servers):
        home = folder / layer / f"fleet-{servers}"
        home.mkdir()
        with ChaosFleet(layer, home, certificate, servers) as fleet:
            for scenario in group:
                with console.status(f"{layer}: no call fails while {scenario.what}"):
                    outcomes.append(run_scenario(scenario, fleet, effort))
                console.print(outcomes[-1].describe(), markup=False, highlight=False, soft_wrap=True)
                save(layer, {scenario.name: figures_of(outcomes[-1])}, command)
    return outcomes


def _servers(scenario: Scenario) -> int:
    return scenario.servers


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.fleet.chaos", description=__doc__)
    names = [*(scenario.name for scenario in SCENARIOS), *EXTRAS]
    parser.add_argument(
        "--only", action="append", choices=names, metavar="NAME", help=f"repeatable: {', '.join(names)}"
    )
    parser.add_argument("--layer", action="append", choices=["l7", "l4"], help="repeatable; both by default")
    parser.add_argument("--short", action="store_true", help="as in make test")
    return parser


if __name__ == "__main__":
    sys.exit(main())
