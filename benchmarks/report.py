"""What a person sees: a table that grows while it runs, and the ratios at the end."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.table import Table

from benchmarks.figures import REFERENCE
from benchmarks.goals import GOALS
from benchmarks.protocol import Timed

__all__ = ["Report", "readable"]


def readable(value: object) -> str:
    """Large numbers with commas, small ones to three digits, anything else as it is."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


class Report:
    """A live table on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._timed: dict[str, Timed] = {}
        self._pairs = 0
        self._doing = ""
        self._live = Live(console=console, auto_refresh=console.is_terminal, transient=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()
        if self._timed:
            self._console.print(self._table())

    def doing(self, what: str) -> None:
        """This begins now."""
        self._doing = what
        if self._console.is_terminal:
            self._live.update(self._screen())
        else:
            self._console.print(escape(what), highlight=False)

    def ran(self, timed: Timed) -> None:
        """A contender finished a round."""
        self._timed[timed.name] = timed
        if self._console.is_terminal:
            self._live.update(self._screen())
        else:
            self._console.print(
                f"  {timed.rounds_s[-1]:.2f} s, {self._pairs / timed.rounds_s[-1]:.1f} pairs/s"
            )

    def has_load(self, pairs: int) -> None:
        """A round has this many pairs."""
        self._pairs = pairs

    def _screen(self) -> RenderableType:
        spinner = Spinner("dots", escape(self._doing))
        return Group(self._table(), spinner) if self._timed else spinner

    def _table(self) -> Table:
        table = Table(title=f"{self._pairs:,} pairs a round, best round", title_justify="left")
        table.add_column("")
        table.add_column("what")
        for heading in ("pairs/s", f"x {REFERENCE}", "spread", "rounds"):
            table.add_column(heading, justify="right")
        reference = self._timed.get(REFERENCE)
        for name, timed in self._timed.items():
            times = f"{reference.best_s / timed.best_s:.2f}" if reference else ""
            speed = f"{self._pairs / timed.best_s:.1f}"
            table.add_row(name, timed.what, speed, times, f"{timed.spread:.0%}", str(len(timed.rounds_s)))
        return table

    def ratios(self, ratios: Mapping[str, float], absent: Mapping[str, str]) -> None:
        """The ratios beside their goals, and what could not be measured."""
        table = Table(title="ratios", title_justify="left")
        table.add_column("")
        table.add_column("what")
        table.add_column("measured", justify="right")
        table.add_column("goal", justify="right")
        for name, goal in GOALS.items():
            if name in ratios:
                colour = "green" if goal.is_met(ratios[name]) else "red"
                table.add_row(name, goal.meaning, f"[{colour}]{readable(ratios[name])}[/]", str(goal))
        if table.row_count:
            self._console.print(table)
        for name, why in absent.items():
            self._console.print(f"[yellow]{name} is missing:[/] {escape(why)}", highlight=False)

    def figures(self, title: str, figures: Mapping[str, Any]) -> None:
        """Named numbers as they are, one line each."""
        self._console.print(f"[bold]{title}[/]")
        for name, value in figures.items():
            if isinstance(value, dict):
                self.figures(f"  {name}", value)
                continue
            self._console.print(f"  {name}: {escape(readable(value))}", highlight=False)
