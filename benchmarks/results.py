"""What is kept of a run: figures by name, ratios, and the machine they are true of."""

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks.machine import is_same_machine
from benchmarks.processes import REPOSITORY

__all__ = ["RESULTS", "Figures", "Results", "merge", "now", "read", "rounded", "write"]

RESULTS = Path(__file__).parent / "results"
SIGNIFICANT_DIGITS = 5

Figures: TypeAlias = dict[str, dict[str, Any]]
Results: TypeAlias = dict[str, Any]
"""The content of latest.json: machine, date, command, figures, ratios, measured, absent.

`figures` holds one object per name and `ratios` is flat. `measured` says for each of both
when and by which command it was measured. `absent` says why something is missing.
"""


def now() -> str:
    """The present, to the second, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def merge(
    old: Results | None,
    *,
    machine: Mapping[str, Any],
    date: str,
    command: str,
    figures: Figures,
    ratios: Mapping[str, float],
    absent: Mapping[str, str],
) -> Results:
    """The results after a run: new figures replace the old ones of the same name, others stay.

    `old` is None after a complete run. Figures of another machine never stay.
    """
    if old is None or not is_same_machine(old["machine"], dict(machine)):
        old = {"figures": {}, "ratios": {}, "measured": {}, "absent": {}}
    source = {"date": date, "command": command, "commit": machine.get("commit", "")}
    new_names = [*figures, *ratios]
    return {
        "machine": dict(machine),
        "date": date,
        "command": command,
        "ratios": rounded({**old["ratios"], **ratios}),
        "figures": rounded({**old["figures"], **figures}),
        "measured": {**old["measured"], **dict.fromkeys(new_names, source)},
        "absent": {
            name: without_paths(why)
            for name, why in {**old["absent"], **absent}.items()
            if name in absent or name not in new_names
        },
    }


def without_paths(reason: str) -> str:
    """The reason without this machine's folders, which are nobody's business in a published file."""
    return reason.replace(str(REPOSITORY), ".").replace(str(Path.home()), "~")


def rounded(value: Any) -> Any:
    """Floats to five significant digits, all through the structure; what is not finite becomes a string."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        # JSON has no infinity.
        return float(f"{value:.{SIGNIFICANT_DIGITS}g}") if math.isfinite(value) else str(value)
    return value


def read(path: Path) -> Results | None:
    """The results of earlier runs, if there are any."""
    if not path.exists():
        return None
    results: Results = json.loads(path.read_text())
    return results


def write(path: Path, results: Results) -> None:
    """Replace the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
