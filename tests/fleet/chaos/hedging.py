"""What hedging is worth: one of four servers stands still, and nobody takes it out."""

import signal
from collections.abc import Mapping
from pathlib import Path

from rerank import HedgePolicy

from deploy.local.certificate import CertificateFiles
from tests.fleet.chaos.fleet import ChaosFleet
from tests.fleet.chaos.load import LoadOptions, Tally
from tests.fleet.chaos.workload import make_questions

__all__ = ["frozen_server_hedged_and_not", "with_a_frozen_server"]

TIMEOUT_S = 2.0
SPEED = {"--simulated-tokens-per-second": "4000"}
HEDGE = HedgePolicy(delay_s=0.5, budget=0.05)
# Earns the hedges that the frozen server then costs; a client in production has done so long ago.
CALM_CALLS = 240
FROZEN_CALLS = 480


def frozen_server_hedged_and_not(
    folder: Path, certificate: CertificateFiles
) -> Mapping[str, Mapping[str, float]]:
    """Figures of the same outage, seen by clients with and without hedging."""
    return {
        "not hedged": _figures(with_a_frozen_server(folder / "plain", certificate, None)),
        "hedged": _figures(with_a_frozen_server(folder / "hedged", certificate, HEDGE)),
    }


def with_a_frozen_server(
    folder: Path, certificate: CertificateFiles, hedge: HedgePolicy | None, calls: int = FROZEN_CALLS
) -> Tally:
    """The calls that began while one server of four was frozen, without a health gate."""
    folder.mkdir(parents=True)
    options = LoadOptions(timeout_s=TIMEOUT_S, clients=1, hedge=hedge)
    with (
        ChaosFleet("l7", folder, certificate, servers=4, gate=False, server_options=SPEED) as fleet,
        fleet.load(make_questions(100), options) as load,
    ):
        load.wait_for_calls(CALM_CALLS)
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
