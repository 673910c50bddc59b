"""Peers that read nothing, say nothing or send slowly hold no connection for long, with TLS and without."""

import asyncio
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response

from deploy.local.certificate import CertificateFiles
from server.config import Settings
from server.transport.http.server import HttpServer, listen_http
from tests.compat.http_server import HttpServerProcess
from tests.support.descriptors import held_connections
from tests.support.ports import free_port
from tests.support.waiting import wait_until

LIMIT = 3
TIMEOUT_S = 1.0
# Below asyncio's high-water mark, and far above what the kernel takes of it here.
UNREAD_BYTES = 40_000
Connect = Callable[[int], socket.socket]


@contextmanager
def sized_answers(**options: Any) -> Iterator[int]:
    """The port of an HTTP front that answers /N with N bytes, and whose kernel buffers are small."""
    settings = Settings(host="127.0.0.1", http_port=free_port(), http_max_connections=LIMIT, **options)
    listener = listen_http(settings)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    started, ended = threading.Event(), threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        size = int(Request(scope).url.path[1:])
        await Response(b"x" * size)(scope, receive, send)

    async def serve() -> None:
        server = HttpServer(app, settings, listener)
        await server.start()
        started.set()
        await asyncio.to_thread(ended.wait)
        await server.stop()

    with ThreadPoolExecutor(1) as pool:
        served = pool.submit(asyncio.run, serve())
        try:
            wait_until(started.is_set, "the front to listen")
            yield settings.http_port
        finally:
            ended.set()
            served.result(30)


@pytest.fixture(params=["plain", "TLS"])
def tls(request: pytest.FixtureRequest, certificate: CertificateFiles) -> dict[str, Any]:
    """The options of a front with or without TLS."""
    if request.param == "plain":
        return {}
    return {"tls_certificate": str(certificate.certificate), "tls_key": str(certificate.key)}


@pytest.fixture
def connect(tls: dict[str, Any]) -> Connect:
    """Open a connection that takes little at a time."""

    def connected(port: int) -> socket.socket:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(20)
        connection.connect(("127.0.0.1", port))
        if not tls:
            return connection
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context.wrap_socket(connection)

    return connected


def ask(connection: socket.socket, size: int, *headers: str) -> None:
    connection.sendall("\r\n".join([f"GET /{size} HTTP/1.1", "host: x", *headers, "", ""]).encode())


@pytest.mark.parametrize("headers", [(), ("connection: close",)], ids=["kept", "closing"])
def test_the_end_of_an_answer_that_is_not_read_ends_the_connection(
    tls: dict[str, Any], connect: Connect, headers: tuple[str, ...]
) -> None:
    """Also when so little of it is left that asyncio does not complain."""
    with sized_answers(http_body_timeout_s=TIMEOUT_S, **tls) as port, ExitStack() as stack:
        for _ in range(LIMIT):
            ask(stack.enter_context(connect(port)), UNREAD_BYTES, *headers)
        wait_until(lambda: held_connections(port) > 0, "the connections to be there", timeout_s=10)
        wait_until(lambda: held_connections(port) == 0, "the connections to be gone", timeout_s=10)


def test_answers_that_are_not_read_do_not_evade_the_limit(tls: dict[str, Any], connect: Connect) -> None:
    """Whoever comes while there is no room is refused; nobody takes a descriptor beyond it."""
    with sized_answers(**tls) as port, ExitStack() as stack:
        for _ in range(4 * LIMIT):
            try:
                ask(stack.enter_context(connect(port)), UNREAD_BYTES)
            except OSError:
                # Refused, and another newcomer has come since.
                continue
            assert held_connections(port) <= LIMIT + 2


def test_an_answer_that_is_read_slowly_arrives(tls: dict[str, Any], connect: Connect) -> None:
    """However long it takes, and although the connection ends behind it."""
    size = 300_000
    with sized_answers(http_body_timeout_s=TIMEOUT_S, **tls) as port, connect(port) as connection:
        ask(connection, size, "connection: close")
        received = b""
        started_s = time.monotonic()
        while piece := connection.recv(4096):
            received += piece
            time.sleep(0.03)
        assert len(received.partition(b"\r\n\r\n")[2]) == size
        assert time.monotonic() - started_s > 2 * TIMEOUT_S


def test_a_handshake_that_does_not_come_is_a_silent_connection(certificate: CertificateFiles) -> None:
    """It counts, makes room for who speaks, and has the time of a head."""
    tls = {"tls_certificate": str(certificate.certificate), "tls_key": str(certificate.key)}
    with sized_answers(http_head_timeout_s=2, **tls) as port, ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        url = f"https://localhost:{port}/10"
        context = ssl.create_default_context(cafile=certificate.root)
        with httpx.Client(verify=context, trust_env=False, timeout=10) as client:
            assert client.get(url).status_code == 200
            assert held_connections(port) <= LIMIT
        wait_until(lambda: held_connections(port) == 0, "the silent ones to be gone", timeout_s=10)


def test_the_request_that_has_been_arriving_longest_makes_room(tmp_path: Path) -> None:
    """Slow senders in any number keep nobody out for longer than a body may stand still."""
    options = ("--http-max-connections", "2", "--http-body-timeout", str(TIMEOUT_S))
    with HttpServerProcess(tmp_path, *options) as server, ExitStack() as stack:
        slow = [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.http_port), timeout=20))
            for _ in range(2)
        ]
        for connection in slow:
            connection.sendall(b"POST /rerank HTTP/1.1\r\nhost: x\r\ncontent-length: 10000000\r\n\r\n")
        statuses = []
        for _ in range(20):
            with httpx.Client(trust_env=False, timeout=10) as client:
                statuses.append(client.get(f"{server.url}/health").status_code)
            if statuses[-1] == 200:
                break
            for connection in slow:
                connection.sendall(b"x" * 20_000)
            time.sleep(0.3)
        assert statuses[0] == 503
        assert statuses[-1] == 200
        answer = slow[0].recv(65536)
        assert answer.startswith(b"HTTP/1.1 408 ")
        error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
        assert error["reason"] == "REQUEST_TIMEOUT"
        assert "--http-max-connections" in error["message"]
