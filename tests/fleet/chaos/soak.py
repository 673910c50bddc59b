"""`make soak`: a fleet at work for minutes, whose memory and descriptors stay where they were.

The caches are off and the load is steady, so whatever grows after the warm-up is a leak.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from deploy.local.certificate import make_certificate
from tests.fleet.chaos.fleet import ChaosFleet
from tests.fleet.chaos.load import SteadyLoad, Tally
from tests.fleet.chaos.processes import open_descriptors, resident_kib
from tests.fleet.chaos.report import save
from tests.fleet.chaos.workload import make_questions

__all__ = ["Soak", "main", "soak"]

DEFAULT_MINUTES = 10.0
WARM_UP_SHARE = 0.3
SAMPLE_INTERVAL_S = 1.0
# Growth is told from the middle of a stretch, since single samples jump with what is in flight.
STRETCH = 0.2
MAX_RSS_GROWTH = 0.01
# Connections come and go with the balancer's keepalive.
MAX_MORE_DESCRIPTORS = 2


@dataclass(slots=True)
class Soak:
    """What was seen."""

    tally: Tally
    minutes: float
    rss_kib: dict[str, list[int]] = field(default_factory=dict)
    """Samples of each process after the warm-up."""
    descriptors: dict[str, list[int]] = field(default_factory=dict)

    def rss_growth(self, name: str) -> float:
        """From the first stretch to the last, as a share."""
        first, last = _ends(self.rss_kib[name])
        return last / first - 1

    def more_descriptors(self, name: str) -> float:
        """From the first stretch to the last."""
        first, last = _ends(self.descriptors[name])
        return last - first

    @property
    def clean(self) -> bool:
        """Whether nothing grew and nothing was lost."""
        return not (self.tally.failed or self.tally.wrong or self.tally.late) and all(
            self.rss_growth(name) < MAX_RSS_GROWTH and self.more_descriptors(name) <= MAX_MORE_DESCRIPTORS
            for name in self.rss_kib
        )

    def figures(self) -> dict[str, object]:
        """For the table and for chaos.json."""
        return {
            "minutes": self.minutes,
            "requests": self.tally.requests,
            "failed": self.tally.failed,
            "wrong": self.tally.wrong,
            "late": self.tally.late,
            "p99_ms": self.tally.percentile_ms(99),
            "rss_mib": {name: samples[-1] / 1024 for name, samples in self.rss_kib.items()},
            "rss_growth": {name: self.rss_growth(name) for name in self.rss_kib},
            "more_descriptors": {name: self.more_descriptors(name) for name in self.descriptors},
        }


def soak(folder: Path, minutes: float) -> Soak:
    """Let a fleet of two work."""
    certificate = make_certificate(folder)
    with ChaosFleet("l7", folder, certificate, servers=2) as fleet, fleet.load(make_questions(500)) as load:
        _stay(load, 60 * minutes * WARM_UP_SHARE)
        watched = {server.name: server.process.pid for server in fleet.servers}
        watched["gate"] = fleet.gate.process.pid
        seen = Soak(
            load.tally, minutes, {name: [] for name in watched}, descriptors={name: [] for name in watched}
        )
        ends_at = time.monotonic() + 60 * minutes * (1 - WARM_UP_SHARE)
        while time.monotonic() < ends_at:
            for name, pid in watched.items():
                seen.rss_kib[name].append(resident_kib(pid))
                seen.descriptors[name].append(open_descriptors(pid))
            _stay(load, SAMPLE_INTERVAL_S)
    return seen


def main(arguments: Sequence[str] | None = None) -> int:
    """Soak, print, record; 0 when nothing grew and nothing was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.fleet.chaos.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=DEFAULT_MINUTES)
    options = parser.parse_args(arguments)
    console = Console(highlight=False, soft_wrap=True)
    with (
        tempfile.TemporaryDirectory(prefix="rerank-soak-") as folder,
        console.status(f"a fleet at work for {options.minutes:g} minutes"),
    ):
        seen = soak(Path(folder), options.minutes)
    console.print(seen.figures())
    save("soak", {f"{options.minutes:g} minutes": seen.figures()}, f"make soak MINUTES={options.minutes:g}")
    console.print("clean" if seen.clean else f"[red]not clean[/] {seen.tally.describe_errors()}")
    return 0 if seen.clean else 1


def _stay(load: SteadyLoad, seconds: float) -> None:
    """Wait while calls go on being answered."""
    before = load.tally.requests
    time.sleep(seconds)
    if load.tally.requests == before:
        raise AssertionError("the load has stopped")


def _ends(samples: Sequence[int]) -> tuple[float, float]:
    stretch = max(1, int(len(samples) * STRETCH))
    return statistics.median(samples[:stretch]), statistics.median(samples[-stretch:])


if __name__ == "__main__":
    sys.exit(main())
