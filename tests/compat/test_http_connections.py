"""Connections: quick when they are kept, and dropped when they dawdle, pile up or never read."""

import json
import os
import re
import resource
import socket
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.compat.http_server import Answer, HttpServerProcess, post
from tests.support.waiting import wait_until

PLAIN = {"query": "red fox", "documents": ["a cat", "the red fox"]}
MIB = 1024 * 1024
GET = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
TIMEOUT_S = 1.0


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServerProcess]:
    """A server of little patience, with room for a megabyte of arriving bodies."""
    options = (
        *("--http-head-timeout", str(TIMEOUT_S), "--http-body-timeout", str(TIMEOUT_S)),
        *("--receiving-mib", "1", "--max-request-mib", "16"),
        *("--simulated-tokens-per-second", "100000000"),
    )
    with HttpServerProcess(tmp_path_factory.mktemp("strict"), *options) as process:
        yield process


def connect(server: HttpServerProcess) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.http_port), timeout=20)


def head(length: int, path: str = "/rerank") -> bytes:
    return f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n".encode()


def rest_of(connection: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    received = b""
    try:
        while piece := connection.recv(65536):
            received += piece
    except ConnectionResetError:
        pass
    return received


def seconds_until_dropped(connection: socket.socket, drip: bytes) -> float:
    """How long one can go on sending."""
    started_s = time.monotonic()
    try:
        while time.monotonic() - started_s < 20:
            connection.sendall(drip)
            time.sleep(0.05)
    except OSError:
        pass
    return time.monotonic() - started_s


def open_sockets(server: HttpServerProcess) -> int:
    folder = Path(f"/proc/{server.process.pid}/fd")
    count = 0
    for descriptor in list(folder.iterdir()):
        try:
            count += os.readlink(descriptor).startswith("socket:")
        except FileNotFoundError:
            continue
    return count


def test_a_kept_connection_is_answered_at_once(server: HttpServerProcess) -> None:
    """Head and body of an answer do not wait for each other's acknowledgement."""
    seconds = []
    with httpx.Client(trust_env=False) as client:
        for _ in range(40):
            started_s = time.monotonic()
            assert client.post(server.url + "/rerank", json=PLAIN).status_code == 200
            seconds.append(time.monotonic() - started_s)
    # Waiting takes 40 ms each time; at best none does.
    assert statistics.median(seconds) < 0.030
    assert min(seconds) < 0.015


def test_a_silent_connection_is_closed(strict: HttpServerProcess) -> None:
    """Nothing was asked, and nothing is answered."""
    with connect(strict) as connection:
        started_s = time.monotonic()
        assert rest_of(connection) == b""
        assert time.monotonic() - started_s < 10


@pytest.mark.parametrize("before", [b"", GET], ids=["new", "used"])
@pytest.mark.parametrize("sent", [b"POST /rerank HTTP/1.1\r\nx: y\r\n", b"\r\n"], ids=["half", "empty"])
def test_a_head_that_does_not_come_is_408(strict: HttpServerProcess, before: bytes, sent: bytes) -> None:
    """On a new connection, and on one that was used before."""
    with connect(strict) as connection:
        if before:
            connection.sendall(before)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        connection.sendall(sent)
        answer = rest_of(connection)
    assert b"HTTP/1.1 408 " in answer
    assert b"--http-head-timeout" in answer


def test_a_head_that_drips_is_not_waited_for_longer(strict: HttpServerProcess) -> None:
    """Each header would otherwise buy time for another."""
    with connect(strict) as connection:
        connection.sendall(b"POST /rerank HTTP/1.1\r\n")
        assert seconds_until_dropped(connection, b"x: y\r\n") < 10


def test_a_body_that_stands_still_is_408(strict: HttpServerProcess) -> None:
    """In the shape of all errors; one that goes on arriving takes as long as it takes."""
    body = json.dumps({"query": "q", "documents": ["x" * 200_000]}).encode()
    with connect(strict) as connection:
        connection.sendall(head(len(body)) + body[:1000])
        answer = rest_of(connection)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["reason"] == "REQUEST_TIMEOUT"
    with connect(strict) as connection:
        connection.sendall(head(len(body)))
        for start in range(0, len(body), 50_000):
            time.sleep(0.6 * TIMEOUT_S)
            connection.sendall(body[start : start + 50_000])
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_the_rest_of_a_refused_body_is_not_waited_for_long(strict: HttpServerProcess) -> None:
    """The caller gets its answer, and then a while to stop."""
    with connect(strict) as connection:
        connection.sendall(head(10**9))
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")
        assert seconds_until_dropped(connection, b"x" * 1000) < 10


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nx: " + b"a" * 40_000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\n" + b"a: b\r\n" * 20_000 + b"\r\n",
        b"GET /health HTTP/1.1\r\nx: " + b"a" * 40_000,
    ],
    ids=["path", "header", "headers", "endless"],
)
def test_a_huge_head_is_431(strict: HttpServerProcess, sent: bytes) -> None:
    """It says how much it may have; nothing of it is kept."""
    with connect(strict) as connection:
        connection.sendall(sent)
        answer = rest_of(connection)
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert b"more than 32,768 bytes" in answer


@pytest.mark.parametrize(
    "sent", [b"1\r\nx\r\n0\r\n" + b"a: b\r\n" * 20_000, b"1;"], ids=["trailers", "extension"]
)
def test_what_hides_in_a_chunked_body_is_bounded(server: HttpServerProcess, sent: bytes) -> None:
    """Trailers and extensions are no body, and end the connection."""
    with connect(server) as connection:
        connection.sendall(b"POST /rerank HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" + sent)
        assert seconds_until_dropped(connection, b"a" * 10_000) < 5


def test_very_many_requests_at_once_on_one_connection_end_it(strict: HttpServerProcess) -> None:
    """A few may wait for each other; thousands would hold up everybody else."""
    with connect(strict) as connection:
        connection.sendall(GET * 20)
        received = b""
        while received.count(b"HTTP/1.1 200 ") < 20:
            received += connection.recv(65536)
    with connect(strict) as connection:
        connection.sendall(GET * 1000)
        assert rest_of(connection).count(b"HTTP/1.1 200 ") < 100


def test_arriving_bodies_have_a_bound_together(tmp_path: Path) -> None:
    """Large ones are refused beyond it and told which option it is; small ones have room of their own."""
    large = json.dumps({"query": "q", "documents": ["x" * 900_000]}).encode()
    with HttpServerProcess(tmp_path, "--receiving-mib", "1") as server:
        with connect(server) as slow:
            slow.sendall(head(16 * MIB) + b"x" * 600_000)
            refused = wait_until(lambda: unless_answered(server, large), "the room to be taken")
            assert refused is not None
            assert refused.status == 429
            assert int(refused.headers["retry-after"]) >= 1
            assert "--receiving-mib" in refused.json["message"]
            assert post(server, "/rerank", PLAIN).status == 200
        wait_until(lambda: unless_answered(server, large) is None, "the room to be free again")


def unless_answered(server: HttpServerProcess, body: bytes) -> Answer | None:
    """The refusal, if it is one."""
    answer = post(server, "/rerank", body)
    return None if answer.status == 200 else answer


def test_who_leaves_in_the_middle_of_a_body_is_one_quiet_line(strict: HttpServerProcess) -> None:
    """499, as Nginx says it; nothing is wrong with the server."""
    with connect(strict) as connection:
        connection.sendall(
            b"POST /rerank HTTP/1.1\r\nhost: x\r\nx-request-id: leaver\r\ncontent-length: 999\r\n\r\n{"
        )
        time.sleep(0.05)

    def line() -> str:
        return next((line for line in strict.log.read_text().splitlines() if '"leaver"' in line), "")

    wait_until(line, "the call in the log")
    assert json.loads(line())["status"] == "499"
    assert json.loads(line())["level"] == "info"
    assert "Traceback" not in strict.log.read_text()


def test_who_does_not_read_the_answer_is_dropped(strict: HttpServerProcess) -> None:
    """Otherwise it would stay in memory for as long as they like."""
    body = json.dumps({"query": "q", "documents": [f"{n} {'x' * 4000}" for n in range(2000)]}).encode()
    before = open_sockets(strict)
    with socket.socket() as connection:
        # Little fits into the kernel's buffers, so that the server must wait.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", strict.http_port))
        connection.sendall(head(len(body)) + body)
        wait_until(lambda: open_sockets(strict) > before, "the connection to be there")
        wait_until(lambda: open_sockets(strict) <= before, "the connection to be dropped", timeout_s=20)


def test_connections_that_wait_make_room_for_new_ones(tmp_path: Path) -> None:
    """Silent ones in any number keep nobody out."""
    with HttpServerProcess(tmp_path, "--http-max-connections", "20") as server, ExitStack() as stack:
        silent = [stack.enter_context(connect(server)) for _ in range(100)]
        assert post(server, "/rerank", PLAIN).status == 200
        assert rest_of(silent[0]) == b""
        assert open_sockets(server) < 50


def test_when_all_connections_are_at_work_the_next_is_told(tmp_path: Path) -> None:
    """503, which balancers understand, and the option's name."""
    with HttpServerProcess(tmp_path, "--http-max-connections", "2") as server, ExitStack() as stack:
        for _ in range(2):
            busy = stack.enter_context(connect(server))
            busy.sendall(head(100).replace(b"host", b"expect: 100-continue\r\nhost"))
            assert busy.recv(100).startswith(b"HTTP/1.1 100 ")
        refusal = rest_of(stack.enter_context(connect(server)))
    assert refusal.startswith(b"HTTP/1.1 503 ")
    assert b"--http-max-connections" in refusal
    assert b"retry-after: 1" in refusal


def test_without_descriptors_the_log_stays_small(tmp_path: Path) -> None:
    """It says once what is missing and how to get more; and all is well when there are some again."""
    with HttpServerProcess(tmp_path) as server, ExitStack() as stack:
        post(server, "/rerank", PLAIN)
        soft, hard = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
        used = len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (used + 5, hard))
        for _ in range(20):
            stack.enter_context(connect(server))
        wait_until(lambda: "no connection can be accepted" in server.log.read_text(), "the log to tell")
        # asyncio tries again each second.
        time.sleep(2.5)
        told = server.log.read_text()
        assert len(re.findall("no connection can be accepted", told)) == 1
        assert "out of system resource" not in told
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (soft, hard))
        wait_until(lambda: post(server, "/rerank", PLAIN).status == 200, "answers again")
