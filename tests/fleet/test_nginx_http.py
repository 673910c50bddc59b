"""Requests over HTTP that servers drop or refuse, and what Nginx keeps of them on its disk."""

import gzip
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from deploy.local.certificate import CertificateFiles
from tests.fuzz.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PREFACE,
    frame,
    header_block,
    settings,
)
from tests.support.http_stand_in import HttpDoor, StandIn, http_door
from tests.support.waiting import wait_until

MIB = 1 << 20
POISON = "/poison"


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False, timeout=20) as opened:
        yield opened


def dropping(path: str) -> tuple[int, bytes] | None:
    """Hang up on poison, as a process that dies of it would."""
    return None if path == POISON else (200, b"ok")


@pytest.mark.parametrize("earlier_requests", [0, 48], ids=["new connections", "kept connections"])
def test_a_request_that_servers_die_of_reaches_two_of_them(
    tmp_path: Path, certificate: CertificateFiles, client: httpx.Client, earlier_requests: int
) -> None:
    """The rest of the fleet lives on, and the caller is told that no server can answer."""
    servers = [StandIn(dropping) for _ in range(6)]
    with http_door(tmp_path, certificate, servers) as door:
        for _ in range(earlier_requests):
            assert client.post(door.url + "/rerank", content=b"{}").status_code == 200
        answer = client.post(door.url + POISON, content=b"{}")
    assert answer.status_code == 503
    assert "no server can answer" in answer.json()["message"]
    assert sum(server.seen.count(POISON) for server in servers) == 2


def test_a_request_that_one_server_drops_is_answered_by_another(
    tmp_path: Path, certificate: CertificateFiles, client: httpx.Client
) -> None:
    """With its body, method and query."""
    servers = [StandIn(dropping)]
    servers.append(StandIn(lambda path: (200, path.encode()) if servers[0].seen else None))
    with http_door(tmp_path, certificate, servers) as door:
        # Whichever comes first drops it.
        servers[0].answer = lambda path: (200, path.encode()) if servers[1].seen else None
        answer = client.post(door.url + "/rerank?a=%2F", content=b"x" * 500_000)
        assert (answer.status_code, answer.text) == (200, "/rerank?a=%2F")
    assert [server.seen for server in servers] == [["/rerank?a=%2F"]] * 2


def test_servers_that_are_gone_or_draining_are_passed_over(
    tmp_path: Path, certificate: CertificateFiles, client: httpx.Client
) -> None:
    """However many they are: that one can't be reached, or refuses, says nothing about the request."""
    draining = [StandIn(lambda path: (503, b"draining")) for _ in range(4)]
    with http_door(tmp_path / "a", certificate, [StandIn()], dead=5) as door:
        assert {client.post(door.url + "/rerank", content=b"{}").status_code for _ in range(12)} == {200}
        assert {client.get(door.url + "/v1/models").status_code for _ in range(12)} == {200}
    with http_door(tmp_path / "b", certificate, [*draining, StandIn()]) as door:
        assert {client.post(door.url + "/rerank", content=b"{}").status_code for _ in range(10)} == {200}


def on_disk_bytes(door: HttpDoor, folder: str) -> int:
    """What Nginx's workers have in files of a temporary folder; they are open and have no names."""
    total = 0
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(link).startswith(str(door.folder / folder)):
                total += link.stat().st_size
        except OSError:
            continue
    return total


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_answer_that_is_not_read_takes_two_megabytes_of_disk(
    tmp_path: Path, certificate: CertificateFiles
) -> None:
    """Of Nginx's; the rest waits in the server."""
    server = StandIn(lambda path: (200, b"x" * (24 * MIB)))
    with http_door(tmp_path, certificate, [server]) as door, socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.connect(("127.0.0.1", door.plain_port))
        reader.sendall(b"POST /rerank HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}")
        wait_until(lambda: on_disk_bytes(door, "proxy") > MIB, "the answer to reach the disk")
        sizes = []
        for _ in range(20):
            time.sleep(0.05)
            sizes.append(on_disk_bytes(door, "proxy"))
    assert max(sizes) < 2.5 * MIB, sizes


def test_compressed_bodies_count_as_large(
    tmp_path: Path, certificate: CertificateFiles, client: httpx.Client
) -> None:
    """However small they are; a "|" in the coding's name doesn't change that."""
    release = threading.Event()

    def hold(path: str) -> tuple[int, bytes]:
        release.wait(30)
        return 200, b"ok"

    body = gzip.compress(b"x" * 10_000)
    server = StandIn(hold)
    with (
        http_door(tmp_path, certificate, [server], MAX_LARGE_BODIES_PER_CLIENT="2") as door,
        ExitStack() as stack,
    ):
        stack.callback(release.set)
        for _ in range(2):
            held = stack.enter_context(socket.create_connection(("127.0.0.1", door.plain_port), timeout=20))
            coding = "host: a\r\ncontent-encoding: gzip"
            head = f"POST /rerank HTTP/1.1\r\n{coding}\r\ncontent-length: {len(body)}\r\n\r\n"
            held.sendall(head.encode() + body)
        wait_until(lambda: len(server.seen) == 2, "two requests to be held")
        for name in ("gzip", "gzip|", "|1|"):
            answer = client.post(door.url + "/rerank", content=body, headers={"content-encoding": name})
            assert answer.status_code == 429, name
            assert "or compressed" in answer.json()["message"]
        release.set()
        assert client.post(door.url + "/rerank", content=b"{}").status_code == 200


def over_http2(method: str, path: str, stream: int, flags: int, *more: bytes) -> bytes:
    """A request whose length isn't announced, as frames."""
    named = {":method": method, ":scheme": "http", ":path": path, ":authority": "a"}
    block = header_block([(name.encode(), value.encode()) for name, value in named.items()])
    return frame(HEADERS, END_HEADERS | flags, stream, block) + b"".join(more)


def test_requests_without_a_body_are_not_large_over_http2(
    tmp_path: Path, certificate: CertificateFiles
) -> None:
    """There they don't say that they have none; one that has is refused."""
    release = threading.Event()

    def hold(path: str) -> tuple[int, bytes]:
        release.wait(30)
        return 200, b""

    server = StandIn(hold)
    methods = ("GET", "HEAD", "OPTIONS", "DELETE") * 2
    with (
        http_door(tmp_path, certificate, [server], MAX_LARGE_BODIES_PER_CLIENT="2") as door,
        socket.create_connection(("127.0.0.1", door.plain_port), timeout=20) as connection,
    ):
        connection.sendall(PREFACE + settings())
        for number, method in enumerate(methods):
            connection.sendall(over_http2(method, f"/{number}", 2 * number + 1, END_STREAM))
        wait_until(lambda: len(server.seen) == len(methods) or door.calls(), "all requests to be let in")
        assert door.calls() == []
        stream = 2 * len(methods) + 1
        body = frame(DATA, END_STREAM, stream, b"x" * 2000)
        connection.sendall(over_http2("GET", "/body", stream, 0, body))
        entry = wait_until(lambda: door.calls("/body"), "the body to be refused")[0]
        assert entry["http_status"] == "413"
        release.set()
        wait_until(lambda: len(door.calls()) == len(methods) + 1, "the answers")
    assert "/body" not in server.seen


def test_a_large_body_counts_whatever_the_method(
    tmp_path: Path, certificate: CertificateFiles, client: httpx.Client
) -> None:
    """GET may announce one, or send one in chunks; neither is kept without being counted."""
    with (
        http_door(tmp_path, certificate, [StandIn()], MAX_LARGE_BODIES_PER_CLIENT="1") as door,
        socket.create_connection(("127.0.0.1", door.plain_port), timeout=20) as holder,
    ):
        length = b"content-length: 2000000\r\nexpect: 100-continue"
        holder.sendall(b"GET /held HTTP/1.1\r\nhost: a\r\n" + length + b"\r\n\r\n")
        assert b"100 Continue" in holder.recv(64), "it is counted before"
        large = b"x" * 2_000_000
        assert client.request("GET", door.url, content=large).status_code == 429
        chunked = client.request("GET", door.url, content=(large for _ in range(1)))
        assert chunked.status_code == 413
        assert client.get(door.url).status_code == 200


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/rerank"])
def test_a_body_that_does_not_arrive_is_given_up_soon(
    tmp_path: Path, certificate: CertificateFiles, path: str
) -> None:
    """Over HTTP after HTTP_READ_TIMEOUT on every path, and not after gRPC's CALL_TIMEOUT."""
    with (
        http_door(tmp_path, certificate, [StandIn()], HTTP_READ_TIMEOUT="1s") as door,
        socket.create_connection(("127.0.0.1", door.plain_port), timeout=10) as connection,
    ):
        connection.sendall(f"GET {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nx".encode())
        assert connection.recv(64) == b"", "Nginx hangs up"
