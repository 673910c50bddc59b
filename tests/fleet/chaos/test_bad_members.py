"""The gate with lists, names and reloads that go wrong: the rotation of the others goes on."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from deploy.local.certificate import CertificateFiles
from deploy.local.ports import is_free
from nginx.render import CONFIGURATION_FILE, UPSTREAM_SERVERS_FILE
from tests.fleet.chaos.gated import NOT_SERVING, SERVICE, SERVING, Gated
from tests.support.waiting import wait_until

NOWHERE = "no-such-server.invalid:50051"


@pytest.fixture
def gated(tmp_path: Path, certificate: CertificateFiles) -> Iterator[Gated]:
    with ExitStack() as stack:
        yield Gated(stack, tmp_path, certificate)


def says_of(gated: Gated, words: str) -> int:
    """How many lines of the gate's log have these words."""
    return sum(words in line for line in gated.gate.log.read_text().splitlines())


def test_a_name_that_does_not_resolve_is_left_out(gated: Gated) -> None:
    """The others leave and return as ever, Nginx can start again, and the log says it once."""
    first, second, _ = (server.address for server in gated.servers)
    gated.list_servers(first, NOWHERE, second)
    gated.wait_for_answers_by("server-0", "server-1")
    gated.servers[1].health.set(SERVICE, NOT_SERVING)
    gated.wait_for_answers_by("server-0")
    gated.servers[1].health.set(SERVICE, SERVING)
    gated.wait_for_answers_by("server-0", "server-1")
    wait_until(lambda: says_of(gated, NOWHERE), "the gate to say who is left out", timeout_s=60)
    gated.nginx.restart()
    gated.wait_for_answers_by("server-0", "server-1")
    assert says_of(gated, NOWHERE) == 1


def test_servers_may_be_listed_by_name(gated: Gated) -> None:
    """The gate resolves them, and Nginx's file has addresses alone."""
    port = gated.servers[0].port
    gated.list_servers(f"localhost:{port}")
    gated.wait_for_answers_by("server-0")
    members = (gated.nginx.folder / UPSTREAM_SERVERS_FILE).read_text()
    assert f"server 127.0.0.1:{port} " in members
    assert "localhost" not in members


@pytest.mark.parametrize("port", [0, 99999])
def test_an_impossible_port_changes_nothing(gated: Gated, port: int) -> None:
    """The list is refused with the line's words, the old one goes on, and Nginx can start again."""
    first = gated.servers[0].address
    gated.list_servers(first, f"127.0.0.1:{port}")
    wait_until(lambda: says_of(gated, f"127.0.0.1:{port}"), "the gate to refuse the list")
    gated.servers[2].health.set(SERVICE, NOT_SERVING)
    gated.wait_for_answers_by("server-0", "server-1")
    gated.nginx.restart()
    gated.wait_for_answers_by("server-0", "server-1")
    assert says_of(gated, f"127.0.0.1:{port}") == 1


def test_a_file_that_is_no_list_does_not_end_the_gate(gated: Gated) -> None:
    """Not UTF-8, a folder, a FIFO, endless: the old list goes on until there is a new one."""
    path, addresses = gated.servers_file, [server.address for server in gated.servers]

    def endless() -> None:
        with path.open("wb") as file:
            file.truncate(1 << 40)

    ways: list[tuple[Callable[[], object], Callable[[], None]]] = [
        (lambda: path.write_bytes(b"\xff\xfe\n"), path.unlink),
        (path.mkdir, path.rmdir),
        (lambda: os.mkfifo(path), path.unlink),
        (endless, path.unlink),
    ]
    for number, (make, remove) in enumerate(ways, 1):
        path.unlink()
        make()
        wait_until(
            lambda: gated.says("list of servers is wrong; the old one stays") >= number,  # noqa: B023
            "the gate to complain",
        )
        gated.servers[0].health.set(SERVICE, NOT_SERVING)
        gated.wait_for_answers_by("server-1", "server-2")
        remove()
        gated.list_servers(*addresses[::-1] if number % 2 else addresses)
        gated.servers[0].health.set(SERVICE, SERVING)
        gated.wait_for_answers_by("server-0", "server-1", "server-2")
    gated.gate.require_running()


def test_a_reload_that_nginx_refuses_is_noticed_and_tried_again(gated: Gated) -> None:
    """The log says so once, the file is again the one that Nginx took, and mending it is enough."""
    configuration = gated.nginx.folder / CONFIGURATION_FILE
    members = gated.nginx.folder / UPSTREAM_SERVERS_FILE
    good, before = configuration.read_text(), members.read_text()
    configuration.write_text(good + "\nno_such_directive;\n")
    gated.servers[0].health.set(SERVICE, NOT_SERVING)
    wait_until(lambda: says_of(gated, "nginx refuses its configuration"), "the gate to notice")
    assert members.read_text() == before
    assert gated.who_answers() == {"server-0", "server-1", "server-2"}
    configuration.write_text(good)
    gated.wait_for_answers_by("server-1", "server-2")
    wait_until(lambda: gated.says("nginx reloaded"), "the gate to see that it is taken")
    assert says_of(gated, "nginx refuses its configuration") == 1


def test_a_change_while_the_master_is_dead_is_told_to_the_next_one(gated: Gated) -> None:
    """A killed master leaves its pid file; the gate finds out, says so once, and goes on with the next."""
    nginx = gated.nginx
    nginx.signal(signal.SIGKILL)
    nginx.process.wait(10)
    gated.servers[0].health.set(SERVICE, NOT_SERVING)
    wait_until(lambda: gated.says("nginx not reloaded; trying again"), "the gate to notice")
    os.killpg(nginx.process.pid, signal.SIGQUIT)
    wait_until(lambda: is_free(nginx.port), "the old workers to stop listening")
    nginx.start_again()
    gated.wait_for_answers_by("server-1", "server-2")
    assert gated.says("nginx not reloaded; trying again") == 1
