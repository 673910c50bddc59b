"""A server of the contract, by hand on HTTP/2, that breaks its answers where no library would.

It answers every document with a score of 0, in order, once its script has run out.
"""

import contextlib
import socket
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self, get_args

from rerank.v1 import rerank_pb2 as wire

from tests.fuzz.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PREFACE,
    RST_STREAM,
    frame,
    grpc_message,
    header_block,
    settings,
)

__all__ = ["AFTER", "HOW", "After", "Break", "BrokenPeer", "How"]

SETTINGS, PING, GOAWAY = 0x4, 0x6, 0x7
ACK = 0x1
HEADERS_OF_AN_ANSWER = header_block([(b":status", b"200"), (b"content-type", b"application/grpc")])
FRAME_HEADER_BYTES = 9
MESSAGE_PREFIX_BYTES = 5


After = Literal["nothing", "headers", "half a message", "a message"]
How = Literal["reset", "no status", "garbage", "close", "abort", "goaway"]
AFTER: tuple[After, ...] = get_args(After)
HOW: tuple[How, ...] = get_args(How)


@dataclass(frozen=True)
class Break:
    """How far one answer gets, and what ends it."""

    after: After
    how: How
    code: int = 0
    """HTTP/2's error code, of "reset" and "goaway"."""

    def __str__(self) -> str:
        return f"{self.how}{f' {self.code}' if self.how in ('reset', 'goaway') else ''} after {self.after}"


class BrokenPeer:
    """A context manager around a listening socket of 127.0.0.1; each call takes one step of the script.

    It can't read compressed headers, so it is told whether its calls are streams.
    """

    def __init__(self, script: Sequence[Break] = (), *, streams: bool = False) -> None:
        self.script = list(script)
        self.calls = 0
        """Calls of which a message arrived."""
        self.streams = streams
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.target = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._connections: list[socket.socket] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for each in (self._socket, *self._connections):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                self._connections.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        calls: dict[int, _Call] = {}
        # Its end, or ours: both are what this class is for.
        with contextlib.suppress(OSError, EOFError):
            _read(connection, len(PREFACE))
            connection.sendall(settings())
            while True:
                header = _read(connection, FRAME_HEADER_BYTES)
                kind, flags, number = struct.unpack(">BBI", header[3:])
                payload = _read(connection, int.from_bytes(header[:3], "big"))
                if kind in (SETTINGS, PING) and not flags & ACK:
                    connection.sendall(frame(kind, ACK, 0, payload if kind == PING else b""))
                elif kind == DATA:
                    for message in calls.setdefault(number, _Call()).take(payload):
                        self._answer(connection, number, calls[number], message)
                    if flags & END_STREAM and self.streams and not calls[number].is_over:
                        connection.sendall(_trailers(number))

    def _answer(self, connection: socket.socket, number: int, call: "_Call", message: bytes) -> None:
        if call.is_over:
            return
        step = None
        if not call.headers_sent:
            self.calls += 1
            step = self.script.pop(0) if self.script else None
        pieces = [] if call.headers_sent else [frame(HEADERS, END_HEADERS, number, HEADERS_OF_AN_ANSWER)]
        call.headers_sent = True
        answer = grpc_message(self._response(message).SerializeToString())
        if step is None:
            connection.sendall(b"".join([*pieces, frame(DATA, 0, number, answer)]))
            if not self.streams:
                call.is_over = True
                connection.sendall(_trailers(number))
            return
        call.is_over = True
        if step.after == "half a message":
            pieces.append(frame(DATA, 0, number, answer[: len(answer) // 2]))
        elif step.after == "a message":
            pieces.append(frame(DATA, 0, number, answer))
        connection.sendall(b"" if step.after == "nothing" else b"".join(pieces))
        _strike(connection, number, step)

    def _response(self, message: bytes) -> wire.RerankResponse | wire.RerankStreamResponse:
        if self.streams:
            item = wire.RerankStreamRequest.FromString(message)
            return wire.RerankStreamResponse(id=item.id, response=_scores(item.request))
        return _scores(wire.RerankRequest.FromString(message))


@dataclass
class _Call:
    """One stream of HTTP/2."""

    body: bytes = b""
    headers_sent: bool = False
    is_over: bool = False

    def take(self, payload: bytes) -> list[bytes]:
        """The messages that are whole with this payload."""
        messages, self.body = _messages(self.body + payload)
        return messages


def _strike(connection: socket.socket, number: int, step: Break) -> None:
    match step.how:
        case "reset":
            connection.sendall(frame(RST_STREAM, 0, number, struct.pack(">I", step.code)))
        case "no status":
            connection.sendall(frame(DATA, END_STREAM, number, b""))
        case "garbage":
            connection.sendall(b"\xff" * 30)
        case "goaway":
            connection.sendall(frame(GOAWAY, 0, 0, struct.pack(">II", number, step.code)))
            connection.shutdown(socket.SHUT_RDWR)
        case "close":
            connection.shutdown(socket.SHUT_RDWR)
        case "abort":
            # Closed so, a socket sends RST instead of FIN.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()


def _scores(request: wire.RerankRequest) -> wire.RerankResponse:
    results = [wire.RankedDocument(index=index) for index in range(len(request.documents))]
    return wire.RerankResponse(results=results)


def _trailers(number: int) -> bytes:
    return frame(HEADERS, END_HEADERS | END_STREAM, number, header_block([(b"grpc-status", b"0")]))


def _messages(body: bytes) -> tuple[list[bytes], bytes]:
    """The whole messages at the beginning of a body, and the rest."""
    messages = []
    while len(body) >= MESSAGE_PREFIX_BYTES:
        end = MESSAGE_PREFIX_BYTES + struct.unpack(">I", body[1:MESSAGE_PREFIX_BYTES])[0]
        if len(body) < end:
            break
        messages.append(body[MESSAGE_PREFIX_BYTES:end])
        body = body[end:]
    return messages, body


def _read(connection: socket.socket, count: int) -> bytes:
    read = b""
    while len(read) < count:
        piece = connection.recv(count - len(read))
        if not piece:
            raise EOFError
        read += piece
    return read
