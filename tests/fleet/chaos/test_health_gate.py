"""The health gate with the real Nginx: who is in the rotation, and how fast that changes."""

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from rerank import RetryPolicy

from deploy.local.certificate import CertificateFiles
from nginx.render import CONFIGURATION_FILE, UPSTREAM_SERVERS_FILE
from server.healthgate.nginx import members_text
from tests.fleet.chaos.fleet import ChaosFleet
from tests.fleet.chaos.gated import NOT_SERVING, SERVICE, SERVING, Gated
from tests.fleet.chaos.load import LoadOptions
from tests.fleet.chaos.workload import make_questions
from tests.support.ports import free_port
from tests.support.scripted_server import ScriptedServer
from tests.support.waiting import wait_until

REACTION_S = 2.0


@pytest.fixture
def gated(tmp_path: Path, certificate: CertificateFiles) -> Iterator[Gated]:
    with ExitStack() as stack:
        yield Gated(stack, tmp_path, certificate)


def reloads(gated: Gated) -> int:
    """How often Nginx was told to read its configuration again."""
    return gated.nginx.log.read_text().count("signal 1 (SIGHUP)")


def test_not_serving_leaves_and_returns_within_two_seconds(gated: Gated) -> None:
    """A server that says NOT_SERVING gets no more calls, until it says SERVING."""
    gated.wait_for_answers_by("server-0", "server-1", "server-2")
    gated.servers[1].health.set(SERVICE, NOT_SERVING)
    assert gated.wait_for_answers_by("server-0", "server-2") < REACTION_S
    gated.servers[1].health.set(SERVICE, SERVING)
    assert gated.wait_for_answers_by("server-0", "server-1", "server-2") < REACTION_S


def test_a_dead_server_leaves_and_its_successor_is_back_within_two_seconds(gated: Gated) -> None:
    """A closed port leaves the rotation; what serves there again is in it."""
    dead = gated.servers[0]
    dead.stop()
    assert gated.wait_for_answers_by("server-1", "server-2") < REACTION_S
    wait_until(lambda: gated.says("out"), "the gate to notice")
    with ScriptedServer("successor", port=dead.port) as successor:
        successor.health.set(SERVICE, SERVING)
        assert gated.wait_for_answers_by("successor", "server-1", "server-2") < REACTION_S


def test_flapping_is_damped(gated: Gated) -> None:
    """From its third exit on a server stays out for a while although it says SERVING."""
    for number in range(1, 4):
        gated.servers[0].health.set(SERVICE, NOT_SERVING)
        wait_until(lambda: gated.says("out") == number, "the server to leave")  # noqa: B023
        left_s = time.monotonic()
        gated.servers[0].health.set(SERVICE, SERVING)
        wait_until(lambda: gated.says("in") == 3 + number, "the server to return")  # noqa: B023
    assert time.monotonic() - left_s > 1.5
    assert gated.wait_for_answers_by("server-0", "server-1", "server-2") < REACTION_S


def test_when_nobody_looks_alive_everybody_is_in(gated: Gated) -> None:
    """Checks that fail everywhere take nobody out: the calls still succeed."""
    for server in gated.servers:
        server.health.set(SERVICE, NOT_SERVING)
    wait_until(lambda: gated.says("no server serves: all stay in rotation"), "the gate to fail open")
    assert gated.wait_for_answers_by("server-0", "server-1", "server-2") < REACTION_S


def test_a_gate_that_ends_leaves_the_rotation_as_it_is(gated: Gated) -> None:
    """Nginx doesn't need the gate to go on, and a new gate changes nothing; it reloads once."""
    gated.servers[2].health.set(SERVICE, NOT_SERVING)
    gated.wait_for_answers_by("server-0", "server-1")
    assert gated.gate.stop() == 0
    assert gated.who_answers() == {"server-0", "server-1"}
    before = reloads(gated)
    gated.gate.start()
    wait_until(lambda: gated.says("out") == 2, "the new gate to look around")
    assert gated.who_answers() == {"server-0", "server-1"}
    wait_until(lambda: reloads(gated) > before, "the new gate to make up for a reload")
    assert gated.who_answers() == {"server-0", "server-1"}
    assert reloads(gated) == before + 1


def test_a_reload_that_was_lost_is_made_up_for(gated: Gated) -> None:
    """By the next gate, when one ends after it wrote the file; after a refusal it tries again."""
    configuration = gated.nginx.folder / CONFIGURATION_FILE
    members = gated.nginx.folder / UPSTREAM_SERVERS_FILE
    good = configuration.read_text()
    assert gated.gate.stop() == 0
    gated.servers[0].health.set(SERVICE, NOT_SERVING)
    out = {server.address: "not serving" if server is gated.servers[0] else "" for server in gated.servers}
    members.write_text(members_text(out))
    configuration.write_text(good + "\nno_such_directive;\n")
    gated.gate.start()
    refusal = "nginx refuses its configuration and keeps the members it had; trying again"
    wait_until(lambda: gated.says(refusal), "the gate to notice")
    assert gated.who_answers() == {"server-0", "server-1", "server-2"}
    configuration.write_text(good)
    gated.wait_for_answers_by("server-1", "server-2")


def test_a_change_while_nginx_is_down_is_not_forgotten(gated: Gated) -> None:
    """Nginx starts with the members as they are then."""
    gated.nginx.stop()
    gated.servers[0].health.set(SERVICE, NOT_SERVING)
    wait_until(lambda: gated.says("out"), "the gate to notice")
    gated.nginx.restart()
    assert gated.wait_for_answers_by("server-1", "server-2") < REACTION_S


def test_servers_are_added_and_removed_by_the_file(gated: Gated) -> None:
    """The list may change at any time; one that makes no sense changes nothing."""
    first, second, third = (server.address for server in gated.servers)
    gated.list_servers(first, second, f"127.0.0.1:{free_port()}")
    gated.wait_for_answers_by("server-0", "server-1")
    gated.list_servers(first, "127.0.0.1:1; evil")
    wait_until(lambda: gated.says("list of servers is wrong; the old one stays"), "the gate to refuse")
    assert gated.who_answers() == {"server-0", "server-1"}
    gated.list_servers(third)
    gated.wait_for_answers_by("server-2")


def test_a_drain_loses_nothing_without_retries(tmp_path: Path, certificate: CertificateFiles) -> None:
    """With --drain-delay above the gate's reaction, clients that never retry see no rolling restart."""
    with (
        ChaosFleet("l7", tmp_path, certificate, servers=2) as fleet,
        fleet.load(make_questions(50), LoadOptions(retry=RetryPolicy(max_attempts=1))) as load,
    ):
        for server in fleet.servers:
            server.signal(signal.SIGTERM)
            assert server.process.wait(30) == 0
            server.restart()
            fleet.wait_in_rotation([server])
    assert (load.tally.failed, load.tally.wrong) == (0, 0), load.tally.describe_errors()
    assert all(entry["grpc_status"] == "0" for entry in fleet.nginx.calls())
