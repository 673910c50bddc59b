"""Every way into the server, as bytes: how a large request is sent, and how it ended."""

import socket
import struct
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc

from tests.support.calls import LARGE_MESSAGES

__all__ = ["GaveUp", "Grpc", "Http", "Ports", "Raw", "Request"]

CONNECT_TIMEOUT_S = 60.0
READ_BYTES = 256 * 1024


class GaveUp(Exception):
    """The sender hung up: it had waited as long as it wanted to."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the server listens, on 127.0.0.1."""

    grpc: int
    http: int


class Request(Protocol):
    """One large request, ready to be sent."""

    @property
    def front(self) -> str:
        """Which way in it takes."""
        ...

    @property
    def size_bytes(self) -> int:
        """What is sent, without frames."""
        ...

    def send(self, ports: Ports, patience_s: float) -> str:
        """Send it on a connection of its own and wait for the whole answer; returns its status.

        Raises:
            GaveUp: there was none in time, and the connection was closed.
        """
        ...


@dataclass(frozen=True, slots=True)
class Grpc:
    """Serialised messages to one method; several only where it takes a stream."""

    method: str
    """Such as rerank.v1.RerankService/Rerank."""
    messages: Sequence[bytes] = field(repr=False)
    kind: str = "unary_unary"
    """Or with streams, as in the names of a channel's methods."""
    compressed: bool = False

    @property
    def front(self) -> str:
        """The method without its package."""
        service, _, method = self.method.partition("/")
        return f"{'tei' if service.startswith('tei') else service.rpartition('.')[2]}/{method}"

    @property
    def size_bytes(self) -> int:
        """Of all messages, before they are compressed."""
        return sum(map(len, self.messages))

    def send(self, ports: Ports, patience_s: float) -> str:
        """One call; see `Request.send`. The server is told no deadline: admission would heed it."""
        with grpc.insecure_channel(f"127.0.0.1:{ports.grpc}", options=LARGE_MESSAGES) as channel:
            grpc.channel_ready_future(channel).result(timeout=CONNECT_TIMEOUT_S)
            # Without serialisers: bytes go out and come in as they are.
            method: Any = getattr(channel, self.kind)(f"/{self.method}")
            sent = iter(self.messages) if self.kind.startswith("stream") else self.messages[0]
            start = method if self.kind.endswith("_stream") else method.future
            call = start(sent, compression=grpc.Compression.Gzip if self.compressed else None)
            hang_up = threading.Timer(patience_s, call.cancel)
            hang_up.start()
            try:
                if self.kind.endswith("_stream"):
                    for _ in call:
                        pass
                else:
                    call.result()
            except grpc.FutureCancelledError:
                raise GaveUp from None
            except grpc.RpcError as error:
                if call.cancelled():
                    raise GaveUp from None
                return str(error.code().name)
            finally:
                hang_up.cancel()
            return "OK"


@dataclass(frozen=True, slots=True)
class Raw:
    """Bytes to the HTTP port, whatever they are."""

    name: str
    data: bytes = field(repr=False)

    @property
    def front(self) -> str:
        """Whatever it is called."""
        return f"http {self.name}"

    @property
    def size_bytes(self) -> int:
        """Of everything."""
        return len(self.data)

    def send(self, ports: Ports, patience_s: float) -> str:
        """Send the bytes and read until the server closes; see `Request.send`."""
        received, gave_up = b"", False
        with socket.create_connection(("127.0.0.1", ports.http), timeout=CONNECT_TIMEOUT_S) as connection:

            def hang_up() -> None:
                nonlocal gave_up
                gave_up = True
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

            def send() -> None:
                # A server that refuses what it is still being sent hangs up on it.
                with suppress(OSError):
                    connection.sendall(self.data)

            connection.settimeout(None)
            timer, sender = threading.Timer(patience_s, hang_up), threading.Thread(target=send)
            timer.start()
            # Beside the reading: a server may answer before it has read everything.
            sender.start()
            try:
                while piece := connection.recv(READ_BYTES):
                    received = received or piece
            except ConnectionError:
                pass
            finally:
                timer.cancel()
                # Unread data is dropped with a reset, as when a process dies.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
                sender.join()
            if gave_up:
                raise GaveUp
        return received[9:12].decode("latin-1") or "hung up"


@dataclass(frozen=True, slots=True)
class Http:
    """One HTTP request."""

    path: str
    body: bytes = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)
    method: str = "POST"

    @property
    def front(self) -> str:
        """Its path."""
        return f"http {self.path}"

    @property
    def size_bytes(self) -> int:
        """Of the body."""
        return len(self.body)

    def send(self, ports: Ports, patience_s: float) -> str:
        """One request; see `Request.send`."""
        lines = [f"{self.method} {self.path} HTTP/1.1", "host: localhost", "connection: close"]
        if "transfer-encoding" not in self.headers:
            lines.append(f"content-length: {len(self.body)}")
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return Raw(self.path, "\r\n".join([*lines, "", ""]).encode() + self.body).send(ports, patience_s)
