"""A gate that starts knows nothing yet, and takes nobody out for it."""

import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from server.healthgate import gate as gate_module
from server.healthgate.gate import Gate, GateOptions
from server.healthgate.names import Names
from tests.support.ports import free_port

NAMES = 100


def options_of(folder: Path, *servers: str, servers_file: Path | None = None) -> GateOptions:
    return GateOptions(
        upstream_file=folder / "upstream_servers.conf",
        nginx_pid_file=folder / "nginx.pid",
        servers=servers,
        servers_file=servers_file,
    )


def members_in(folder: Path) -> list[str]:
    """The addresses that Nginx is told of."""
    return [line.split()[1] for line in (folder / "upstream_servers.conf").read_text().splitlines()]


async def test_a_gate_that_starts_waits_for_all_names(tmp_path: Path) -> None:
    """A hundred names that take 20 ms each: the first list that it writes has every server."""
    port = free_port()

    def lookup(host: str, port: int) -> list[str]:
        time.sleep(0.02)
        return [f"127.0.0.{host.removeprefix('name-')}:{port}"]

    names = [f"name-{number}:{port}" for number in range(1, NAMES + 1)]
    gate = Gate(options_of(tmp_path, *names), Names(lookup))
    await gate.step()
    await gate.close()
    assert len(members_in(tmp_path)) == NAMES


async def test_it_waits_no_longer_than_it_must(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that fails has had its outcome; one that nobody answers for is left out after a while."""
    monkeypatch.setattr(gate_module, "FIRST_LOOKUPS_S", 1.0)

    def lookup(host: str, port: int) -> list[str]:
        if host == "unknown":
            raise OSError("Name or service not known")
        time.sleep(10 if host == "silent" else 0)
        return [f"127.0.0.1:{port}"]

    for third, at_least_s in (("unknown", 0.0), ("silent", 1.0)):
        port = free_port()
        gate = Gate(options_of(tmp_path, f"known:{port}", f"127.0.0.2:{port}", f"{third}:1"), Names(lookup))
        began_s = time.monotonic()
        await gate.step()
        assert at_least_s <= time.monotonic() - began_s < 8
        await gate.close()
        assert members_in(tmp_path) == [f"127.0.0.1:{port}", f"127.0.0.2:{port}"]


async def test_the_log_says_what_becomes_of_a_wrong_list(tmp_path: Path) -> None:
    """The old one stays where there is one; without one the good lines are taken, if there are any."""
    servers_file = tmp_path / "servers"
    good, wrong = f"127.0.0.1:{free_port()}", "127.0.0.1:0"
    told = []
    for contents in ([wrong], [f"{good}\n{wrong}"], [good, f"{good}\n{wrong}"]):
        gate = Gate(options_of(tmp_path, servers_file=servers_file))
        with capture_logs() as lines:
            for content in contents:
                servers_file.write_text(content)
                await gate.step()
        await gate.close()
        told.append([line["event"].partition("; ")[2] for line in lines if "list" in line["event"]])
    assert told == [["nobody is watched"], ["its good lines are taken"], ["the old one stays"]]
