"""The scenarios of chaos, briefly: no call fails, and every answer is right."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.certificate import CertificateFiles
from tests.fleet.chaos.fleet import ChaosFleet
from tests.fleet.chaos.runner import run_scenario
from tests.fleet.chaos.scenarios import SCENARIOS, SHORT

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
# Layer 4 at length is `make chaos`'s; these are what it promises as firmly as layer 7.
SHORT_AT_L4 = ["kill -9", "NOT_SERVING"]
# test_health_gate.py restarts every server while clients don't even retry.
LONG_ONLY = {"rolling restart"}
AT_L7 = [scenario.name for scenario in SCENARIOS if scenario.servers > 2 and scenario.name not in LONG_ONLY]


@pytest.fixture(scope="module")
def layer7(tmp_path_factory: pytest.TempPathFactory, certificate: CertificateFiles) -> Iterator[ChaosFleet]:
    with ChaosFleet("l7", tmp_path_factory.mktemp("l7"), certificate, servers=3) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def layer4(tmp_path_factory: pytest.TempPathFactory, certificate: CertificateFiles) -> Iterator[ChaosFleet]:
    with ChaosFleet("l4", tmp_path_factory.mktemp("l4"), certificate, servers=3) as fleet:
        yield fleet


@pytest.mark.parametrize("name", AT_L7)
def test_at_layer_7_no_call_is_lost(layer7: ChaosFleet, name: str) -> None:
    """Whatever happens to one server or to Nginx, every call is answered rightly and in time."""
    outcome = run_scenario(BY_NAME[name], layer7, SHORT)
    assert outcome.kept_the_promise, outcome.describe()


@pytest.mark.parametrize("name", SHORT_AT_L4)
def test_at_layer_4_no_call_is_lost(layer4: ChaosFleet, name: str) -> None:
    """Where connections are balanced instead of calls, a dead or draining server costs time and no call."""
    outcome = run_scenario(BY_NAME[name], layer4, SHORT)
    assert outcome.kept_the_promise, outcome.describe()


def test_scaling_out_and_in_loses_no_call(tmp_path: Path, certificate: CertificateFiles) -> None:
    """Two servers become six, all of which answer, and two again."""
    with ChaosFleet("l7", tmp_path, certificate, servers=2) as fleet:
        outcome = run_scenario(BY_NAME["scale 2-6-2"], fleet, SHORT)
    assert outcome.kept_the_promise, outcome.describe()
