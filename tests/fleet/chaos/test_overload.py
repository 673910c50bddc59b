"""Ten times the load through Nginx and gRPC, briefly."""

from pathlib import Path

from deploy.local.certificate import CertificateFiles
from tests.fleet.chaos.overload import DEADLINE_S, SHORT_S, overload


def test_overload_costs_the_refused_and_nobody_else(tmp_path: Path, certificate: CertificateFiles) -> None:
    """Goodput stays at capacity, answers come in time, refusals say when to come back, memory is flat."""
    seen = overload(tmp_path / "overload", certificate, SHORT_S)
    assert seen.goodput_share >= 0.95, seen.figures()
    assert max(seen.answered_s) <= DEADLINE_S
    assert seen.expired <= 0.01 * seen.sent
    assert seen.refused > 0.8 * seen.sent
    assert seen.refused_without_pushback == 0
    assert not seen.other_errors
    assert seen.rss_growth < 0.05
    assert seen.failed_after == 0
