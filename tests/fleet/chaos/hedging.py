"""What hedging is worth: one of four servers stands still, and nobody takes it out."""

import signal
from dataclasses import dataclass
from pathlib import Path

from rerank import HedgePolicy

from deploy.local.certificate import CertificateFiles
from tests.fleet.chaos.fleet import ChaosFleet
from tests.fleet.chaos.load import LoadOptions, Tally
from tests.fleet.chaos.workload import make_questions

__all__ = ["HEDGE", "TIMEOUT_S", "Comparison", "with_a_frozen_server"]

TIMEOUT_S = 2.0
SPEED = {"--simulated-tokens-per-second": "4000"}
# Nginx gives a frozen server a new call whenever its count of connections is below the others', so with
# hedges that free them early about two calls in each delay; the budget of 5% covers four of 60 a second.
HEDGE = HedgePolicy(delay_s=0.5, budget=0.05)
# Earns the hedges that the frozen server then costs; a client in production has done so long ago.
CALM_CALLS = 240
FROZEN_CALLS = 480


@dataclass(frozen=True, slots=True)
class Comparison:
    """The same outage, seen by two kinds of clients."""

    plain: Tally
    hedged: Tally

    def figures(self) -> dict[str, dict[str, float]]:
        """For the table and for chaos.json."""
        return {"not hedged": _figures(self.plain), "hedged": _figures(self.hedged)}


def with_a_frozen_server(
    folder: Path, certificate: CertificateFiles, calls: int = FROZEN_CALLS
) -> Comparison:
    """Freeze one of four servers twice, without a health gate that would take it out."""
    folder.mkdir(parents=True, exist_ok=True)
    with ChaosFleet("l7", folder, certificate, servers=4, gate=False, server_options=SPEED) as fleet:
        return Comparison(plain=_outage(fleet, None, calls), hedged=_outage(fleet, HEDGE, calls))


def _outage(fleet: ChaosFleet, hedge: HedgePolicy | None, calls: int) -> Tally:
    """The calls that ended while the server was frozen."""
    options = LoadOptions(timeout_s=TIMEOUT_S, clients=1, hedge=hedge)
    with fleet.load(make_questions(100), options) as load:
        load.wait_for_calls(CALM_CALLS if hedge else 1)
        fleet.servers[0].signal(signal.SIGSTOP)
        try:
            load.tally = tally = Tally()
            load.wait_for_calls(calls)
        finally:
            fleet.servers[0].signal(signal.SIGCONT)
    return tally


def _figures(tally: Tally) -> dict[str, float]:
    return {
        "requests": tally.requests,
        "failed": tally.failed,
        "wrong": tally.wrong,
        "late": tally.late,
        "p50_ms": tally.percentile_ms(50),
        "p99_ms": tally.percentile_ms(99),
    }
