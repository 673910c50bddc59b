"""Connections to the gRPC port that say nothing, are gone, or want too much."""

import asyncio
import socket
import struct
import time
from collections.abc import AsyncIterator, Iterator

import grpc.aio
import pytest

from server.config import read_settings
from server.transport import grpc_server
from tests.fuzz.frames import PREFACE, frame, settings

SETTINGS, PING, GOAWAY, ACK = 0x4, 0x6, 0x7, 0x1
MAX_CONCURRENT_STREAMS = 0x3


@pytest.fixture
async def port(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    """Where a server listens that is less patient than in production."""
    monkeypatch.setattr(grpc_server, "HANDSHAKE_TIMEOUT_S", 1)
    monkeypatch.setattr(grpc_server, "KEEPALIVE_S", 1)
    monkeypatch.setattr(grpc_server, "KEEPALIVE_TIMEOUT_S", 1)
    options = read_settings(
        ["--host", "127.0.0.1", "--port", "0", "--max-connection-age", "0"], environment={}
    )
    server: grpc.aio.Server = grpc_server.build_grpc_server(options, None)
    bound = grpc_server.bind(server, options)
    await server.start()
    yield bound
    await server.stop(None)


def frames(connection: socket.socket) -> Iterator[tuple[int, int, bytes]]:
    """Kind, flags and payload of each frame until the other side closes."""
    read = connection.makefile("rb")
    while len(head := read.read(9)) == 9:
        length = int.from_bytes(head[:3], "big")
        yield head[3], head[4], read.read(length)


def open_connection(port: int, *said: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    connection.sendall(b"".join(said))
    return connection


async def seconds_until_closed(port: int, *said: bytes) -> float:
    """How long a connection lives that says no more than this."""

    def watch() -> float:
        begun_s = time.monotonic()
        with open_connection(port, *said) as connection:
            try:
                while connection.recv(65536):
                    continue
            except ConnectionError:
                pass
            return time.monotonic() - begun_s

    return await asyncio.to_thread(watch)


async def test_a_connection_that_says_nothing_is_closed(port: int) -> None:
    """And so is one that says half of its first words."""
    assert await seconds_until_closed(port) < 15
    assert await seconds_until_closed(port, PREFACE[:10]) < 15


async def test_a_peer_that_is_gone_is_noticed(port: int) -> None:
    """One that does not answer pings, such as a machine without power, loses its connection."""
    assert await seconds_until_closed(port, PREFACE, settings(), frame(SETTINGS, ACK, 0, b"")) < 15


async def test_a_peer_that_answers_keeps_its_connection(port: int) -> None:
    """Idle for several times as long as the silent one."""

    def stay() -> int:
        answered = 0
        with open_connection(port, PREFACE, settings()) as connection:
            for kind, flags, payload in frames(connection):
                if kind == SETTINGS and not flags & ACK:
                    connection.sendall(frame(SETTINGS, ACK, 0, b""))
                elif kind == PING and not flags & ACK:
                    connection.sendall(frame(PING, ACK, 0, payload))
                    answered += 1
                    if answered == 5:
                        break
        return answered

    assert await asyncio.to_thread(stay) == 5


async def test_calls_of_one_connection_are_bounded(port: int) -> None:
    """The server says how many it takes at once."""

    def announced() -> dict[int, int]:
        with open_connection(port, PREFACE, settings()) as connection:
            for kind, flags, payload in frames(connection):
                if kind == SETTINGS and not flags & ACK:
                    return dict(struct.iter_unpack(">HI", payload))
        return {}

    assert (await asyncio.to_thread(announced))[MAX_CONCURRENT_STREAMS] == grpc_server.MAX_STREAMS
