"""A second attempt on another server saves calls that wait for a frozen one."""

from pathlib import Path

from deploy.local.certificate import CertificateFiles
from tests.fleet.chaos.hedging import TIMEOUT_S, with_a_frozen_server


def test_hedging_cuts_the_tail(tmp_path: Path, certificate: CertificateFiles) -> None:
    """With one server of four frozen, the slowest hundredth is faster than a deadline, and fewer fail."""
    outage = with_a_frozen_server(tmp_path, certificate, calls=180)
    plain, hedged = outage.plain, outage.hedged
    assert plain.failed > hedged.failed, (plain.failed, hedged.failed)
    assert hedged.percentile_ms(98) < 1000 * TIMEOUT_S / 2
    assert plain.late == hedged.late == plain.wrong == hedged.wrong == 0
