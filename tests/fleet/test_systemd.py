"""The systemd units: what they start exists, and nobody starts it as root."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from server.config import read_settings
from server.healthgate.__main__ import main as healthgate
from tests.support.child_process import REPOSITORY

UNITS = REPOSITORY / "deploy" / "systemd"
NAMES = ["rerank@.service", "rerank-healthgate.service"]
HARDENING = {
    "DynamicUser": "yes",
    "NoNewPrivileges": "yes",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "Restart": "always",
    "RestartPreventExitStatus": "2",
}


def settings_of(name: str) -> dict[str, str]:
    """The unit's settings; of repeated ones the last."""
    text = (UNITS / name).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if "=" in line and not line.startswith("#")]
    return {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in lines)}


@pytest.mark.parametrize("name", NAMES)
def test_units_run_as_nobody_in_a_file_system_that_is_read_only(name: str) -> None:
    """Every unit has a user of its own, no way to more rights, and nothing to write to but its state."""
    settings = settings_of(name)
    assert {key: settings.get(key) for key in HARDENING} == HARDENING
    assert settings["CapabilityBoundingSet"] in {"", "CAP_KILL"}


def test_the_server_unit_gives_options_that_exist() -> None:
    """The instance is the GPU and the port, and the drain fits into the time that systemd leaves."""
    settings = settings_of("rerank@.service")
    words = shlex.split(settings["ExecStart"])
    text = (UNITS / "rerank@.service").read_text().replace("%i", "3")
    given = [
        word for line in text.splitlines() if line.startswith("Environment=RERANK") for word in line.split()
    ]
    environment = dict(word.removeprefix("Environment=").split("=", 1) for word in given)
    options = read_settings(words[words.index("server") + 1 :], environment)
    assert (options.port, options.device) == (50053, "cuda:0")
    assert options.drain_delay_s + options.drain_grace_s < float(settings["TimeoutStopSec"])


def test_the_gate_unit_gives_options_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    """The gate takes its command line, and complains of nothing but the missing folder."""
    words = shlex.split(settings_of("rerank-healthgate.service")["ExecStart"])
    assert healthgate(words[words.index("server.healthgate") + 1 :]) == 2
    assert "folder does not exist" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
@pytest.mark.parametrize("name", NAMES)
def test_systemd_accepts_the_units(tmp_path: Path, name: str) -> None:
    """systemd-analyze has no complaint, given an executable that is there."""
    unit = tmp_path / name.replace("@", "@0")
    text = (UNITS / name).read_text()
    unit.write_text(text.replace("/opt/rerank/.venv/bin/python", "/bin/true"))
    command = ["systemd-analyze", "verify", "--man=no", str(unit)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    complaints = [line for line in result.stderr.splitlines() if unit.name in line]
    assert (result.returncode, complaints) == (0, [])
