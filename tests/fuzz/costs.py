"""What one large request costs everybody else: measured beside a witness, request by request."""

import os
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.processes import Isolated
from tests.compat.http_server import HttpServerProcess
from tests.fleet.chaos.processes import resident_kib
from tests.fuzz.cost_witness import PROBES, CostWitness, Waits
from tests.fuzz.costly import Costly
from tests.fuzz.costly_http import HTTP_CATALOGUE
from tests.fuzz.costly_messages import GRPC_CATALOGUE
from tests.fuzz.fronts import GaveUp, Ports, Request
from tests.fuzz.processors import ProcessorShare, processor_s

__all__ = ["CATALOGUE", "HEADING", "OPTIONS", "Cost", "CostMeter"]

CATALOGUE: tuple[Costly, ...] = (*GRPC_CATALOGUE, *HTTP_CATALOGUE)

MOST_LONGER_S = 0.25
"""What a small caller may wait longer beside any single request."""
MOST_HEALTH_S = 0.25
MOST_RSS_GROWTH_MIB = 200.0
MOST_BUSY_AFTER_S = 2.0
"""How long the processor may go on for a caller who is gone."""
# Large requests that take longer are cancelled; ending them must be as harmless as doing them.
PATIENCE_S = 4.0
ATTEMPTS = 3
OPTIONS = ("--simulated-tokens-per-second", "20e6")
# A server that has kept this much of earlier requests would hide what the next one takes.
KEPT_MIB = 60.0
CALM_S = 0.3
CALM_TIMEOUT_S = 10.0
CALM_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Cost:
    """What one request did to others."""

    name: str
    front: str
    size_bytes: int
    status: str
    seconds: float
    longer_s: dict[str, float]
    """By probe: the longest wait less the usual one, as it would be on a machine of one's own."""
    failures: list[str]
    """Of small callers."""
    rss_growth_mib: float
    busy_after_s: float
    """How long the server's processor went on after the answer, or after the caller had left."""
    share: float
    """Of the processors that the server wanted; waits are multiplied with it."""

    @property
    def excess(self) -> float:
        """The largest part of any bound that was used; above 1 it is broken."""
        return max(
            self.longer_s["grpc"] / MOST_LONGER_S,
            self.longer_s["http"] / MOST_LONGER_S,
            self.longer_s["health"] / MOST_HEALTH_S,
            self.rss_growth_mib / MOST_RSS_GROWTH_MIB,
            self.busy_after_s / MOST_BUSY_AFTER_S,
            1.0 + len(self.failures) if self.failures else 0.0,
        )

    def __str__(self) -> str:
        waits = " ".join(f"{self.longer_s[probe] * 1000:8.0f}" for probe in PROBES)
        verdict = "  " if self.excess <= 1 else "!!"
        failed = f"  {len(self.failures)} failed: {self.failures[0][:80]}" if self.failures else ""
        return (
            f"{verdict} {self.front:<27} {self.name:<58} {self.size_bytes / 2**20:6.1f} {self.status:<18} "
            f"{self.seconds:5.1f} {waits} {self.rss_growth_mib:7.0f} {self.busy_after_s:5.1f} "
            f"{self.share:5.0%}{failed}"
        )


HEADING = (
    f"   {'front':<27} {'request':<58} {'MiB':>6} {'status':<18} {'s':>5} "
    + " ".join(f"{probe + ' ms':>8}" for probe in PROBES)
    + f" {'RSS MiB':>7} {'after':>5} share"
)


class CostMeter:
    """One server and its witness, both started anew when a request has left something behind."""

    def __init__(self, folder: Path, *options: str) -> None:
        self._folder = folder
        self._options = options
        self._starts = 0
        self._stack = ExitStack()
        self.server: HttpServerProcess
        self._witness: Isolated
        self._fresh_kib = 0
        self._usual_s: dict[str, float] = {}

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def cost_of(self, costly: Costly, *, attempts: int = ATTEMPTS, patience_s: float = PATIENCE_S) -> Cost:
        """Send it and see; again when a bound is broken, which a moment of the machine's can do, too."""
        request = costly.build()
        best: Cost | None = None
        for _ in range(attempts):
            cost = self._measure(costly.name, request, patience_s)
            best = cost if best is None or cost.excess < best.excess else best
            if best.excess <= 1:
                break
        assert best is not None
        return best

    def _measure(self, name: str, request: Request, patience_s: float) -> Cost:
        if not self._is_as_new():
            if self.server.running:
                # It may be too busy to hear a signal.
                self.server.kill()
            self._stack.close()
            self._start()
        pid = self.server.process.pid
        before_kib = resident_kib(pid)
        forget_peak(pid)
        self._witness.call("begin")
        processors = ProcessorShare(pid, self._witness.call("pid"), os.getpid())
        started_s = time.monotonic()
        try:
            status = request.send(Ports(self.server.port, self.server.http_port), patience_s)
        except GaveUp:
            status = "(hung up)"
        seconds = time.monotonic() - started_s
        waits: Waits = self._witness.call("end")
        share = processors.now()
        # What is freed late counts as much as what is taken at once.
        peak_kib = peak_resident_kib(pid)
        ended_s = time.monotonic()
        self._calm_down(pid)
        failures = [failure for probe in PROBES for failure in waits.failures[probe]]
        if not self.server.running:
            failures.append(f"the server ended with {self.server.process.returncode}")
        return Cost(
            name=name,
            front=request.front,
            size_bytes=request.size_bytes,
            status=status,
            seconds=seconds,
            longer_s={probe: share * (waits.longest_s[probe] - self._usual_s[probe]) for probe in PROBES},
            failures=failures,
            rss_growth_mib=(peak_kib - before_kib) / 1024,
            busy_after_s=share * max(0.0, time.monotonic() - ended_s - CALM_S),
            share=share,
        )

    def _start(self) -> None:
        self._starts += 1
        name = f"server{self._starts}"
        self.server = self._stack.enter_context(
            HttpServerProcess(self._folder, *OPTIONS, *self._options, name=name)
        )
        self._witness = self._stack.enter_context(
            Isolated(CostWitness, self.server.port, self.server.http_port)
        )
        # The first calls import and allocate what all later ones use.
        time.sleep(CALM_S)
        self._witness.call("begin")
        time.sleep(2 * CALM_S)
        usual: Waits = self._witness.call("end")
        self._usual_s = usual.median_s
        self._fresh_kib = resident_kib(self.server.process.pid)
        self._calm = True

    def _is_as_new(self) -> bool:
        if not self.server.running or not self._calm:
            return False
        return (resident_kib(self.server.process.pid) - self._fresh_kib) / 1024 < KEPT_MIB

    def _calm_down(self, pid: int) -> None:
        """Return once the server does little but answer the witness."""
        give_up_s = time.monotonic() + CALM_TIMEOUT_S
        self._calm = False
        while not self._calm and time.monotonic() < give_up_s and self.server.running:
            before_s = processor_s(pid)
            time.sleep(CALM_S)
            self._calm = processor_s(pid) - before_s < CALM_SHARE * CALM_S


def forget_peak(pid: int) -> None:
    """Let the kernel note the peak of memory anew."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_resident_kib(pid: int) -> int:
    """The most memory that a process had since `forget_peak`, in KiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    raise ProcessLookupError(f"process {pid} has no memory")
