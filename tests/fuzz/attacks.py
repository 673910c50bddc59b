"""Ways to be wrong on the wire. Each takes a target and chance, and returns what came back."""

import gzip
import random
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from rerank.v1 import rerank_pb2

from tests.fuzz.frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    METHOD,
    PREFACE,
    RST_STREAM,
    call_headers,
    frame,
    grpc_message,
    header_block,
    settings,
)

__all__ = ["ATTACKS", "Attack", "Target"]

# A server that neither answers nor hangs up has this long before the attacker leaves.
PATIENCE_S = 0.006
MOST_READ_BYTES = 65536
BOMB_MIB = 64
DRIP_S = 0.005
_BOMB = gzip.compress(bytes(BOMB_MIB * 1024 * 1024), compresslevel=9)
_METHODS = ("Rerank", "RerankStream", "GetModel", "rerank", "", "Rerank/x", "../Rerank", "%00")
_CONTENT_TYPES = ("", "text/html", "application/json", "application/grpc+xml", "application/grpc-web", "\x01")


@dataclass(frozen=True, slots=True)
class Target:
    """Where the server listens for gRPC."""

    host: str
    port: int

    def connect(self) -> socket.socket:
        """A new connection; the server must always accept one."""
        return socket.create_connection((self.host, self.port), timeout=10)

    def send(self, data: bytes, *, patience_s: float = PATIENCE_S) -> bytes:
        """Send on a connection of its own and return what comes back before it is closed again."""
        with self.connect() as connection:
            # A server may hang up in the middle of it.
            with suppress(OSError):
                connection.sendall(data)
            return _read(connection, patience_s)


@dataclass(frozen=True, slots=True)
class Attack:
    """One way, and how often of a thousand it is chosen."""

    name: str
    share: int
    run: Callable[[Target, random.Random], bytes]


def random_bytes(target: Target, chance: random.Random) -> bytes:
    """Noise from the first byte on."""
    return target.send(chance.randbytes(chance.randint(0, 600)))


def random_frames(target: Target, chance: random.Random) -> bytes:
    """A proper beginning, then frames of every kind with any content."""
    frames = [
        frame(
            chance.choice([*range(11), chance.randrange(256)]),
            chance.randrange(256),
            chance.choice([0, 1, 3, 2**31 - 1, chance.randrange(2**32)]),
            chance.randbytes(chance.choice([0, 4, 5, 8, chance.randint(0, 300)])),
        )
        for _ in range(chance.randint(1, 12))
    ]
    return target.send(PREFACE + settings() + b"".join(frames))


def broken_frames(target: Target, chance: random.Random) -> bytes:
    """A proper call of which some bytes are changed, lost, or claim another length.

    All but the method's name: one that is not UTF-8 ends grpc.aio's server, which
    test_front_door.py is about; here it would drown everything else.
    """
    data = bytearray(_call(_valid_message(chance)))
    for _ in range(chance.randint(1, 4)):
        position = chance.choice(
            [*range(len(PREFACE), data.find(b":path")), *range(_end_of_name(data), len(data))]
        )
        action = chance.randrange(3)
        if action == 0:
            data[position] = chance.randrange(256)
        elif action == 1:
            del data[position : position + 1]
        else:
            data[position:position] = chance.randbytes(chance.randint(1, 9))
    return target.send(bytes(data))


def lying_lengths(target: Target, chance: random.Random) -> bytes:
    """Frames and messages that claim to be longer or shorter than they are."""
    message = grpc_message(_valid_message(chance), length=chance.choice([0, 1, 2**31 - 1, 2**32 - 1]))
    headers = frame(HEADERS, END_HEADERS, 1, header_block(call_headers()))
    lie = chance.choice([0, 1, len(message) + 1, 2**24 - 1, len(message)])
    return target.send(PREFACE + settings() + headers + frame(DATA, END_STREAM, 1, message, length=lie))


def wrong_calls(target: Target, chance: random.Random) -> bytes:
    """Content types, methods and compressions that don't exist."""
    headers = call_headers(
        method=f"/rerank.v1.RerankService/{chance.choice(_METHODS)}",
        content_type=chance.choice(_CONTENT_TYPES),
        extra=[(b"grpc-encoding", chance.choice([b"", b"br", b"gzip", chance.randbytes(8)]))],
    )
    chance.shuffle(headers)
    return target.send(_call(_valid_message(chance), headers))


def mutated_messages(target: Target, chance: random.Random) -> bytes:
    """A proper call whose protobuf message isn't one, or not quite."""
    message = bytearray(_valid_message(chance) or b"\x0a")
    for _ in range(chance.randint(1, 6)):
        message[chance.randrange(len(message))] = chance.randrange(256)
    return target.send(_call(bytes(message)))


def huge_headers(target: Target, chance: random.Random) -> bytes:
    """Far more metadata than is allowed, in one piece or in thousands."""
    if chance.random() < 0.5:
        extra = [(b"x-long", b"x" * chance.choice([20_000, 200_000]))]
    else:
        extra = [(b"x-%d" % number, b"y" * 20) for number in range(chance.choice([1000, 5000]))]
    block = header_block(call_headers(extra=extra))
    pieces = [block[start : start + 16_000] for start in range(0, len(block), 16_000)]
    frames = [frame(HEADERS, 0, 1, pieces[0])]
    frames += [frame(CONTINUATION, 0, 1, piece) for piece in pieces[1:]]
    return target.send(PREFACE + settings() + b"".join(frames))


def endless_continuations(target: Target, chance: random.Random) -> bytes:
    """Headers that never end."""
    more = frame(CONTINUATION, 0, 1, header_block([(b"a", b"b")])) * chance.choice([10, 2000])
    return target.send(PREFACE + settings() + frame(HEADERS, 0, 1, header_block(call_headers())) + more)


def rapid_reset(target: Target, chance: random.Random) -> bytes:
    """Hundreds of calls, each cancelled before it can be answered."""
    headers = header_block(call_headers())
    calls = [
        frame(HEADERS, END_HEADERS, stream, headers) + frame(RST_STREAM, 0, stream, b"\x00\x00\x00\x08")
        for stream in range(1, 2 * chance.randint(1, 300), 2)
    ]
    return target.send(PREFACE + settings() + b"".join(calls))


def compression_bomb(target: Target, chance: random.Random) -> bytes:
    """A message of kilobytes that unpacks to far more than a request may have."""
    headers = call_headers(extra=[(b"grpc-encoding", b"gzip")])
    return target.send(_call(_BOMB, headers, compressed=1), patience_s=0.5)


def deep_unknown_fields(target: Target, chance: random.Random) -> bytes:
    """Groups in groups, or messages in messages, of a field that nobody knows."""
    depth = chance.choice([50, 101, 5_000, 100_000])
    if chance.random() < 0.5:
        return target.send(_call(b"\xf3\x03" * depth + b"\xf4\x03" * depth))
    nested = b""
    for _ in range(min(depth, 2_000)):
        nested = b"\xfa\x07" + _varint(len(nested)) + nested
    return target.send(_call(nested))


def half_open(target: Target, chance: random.Random) -> bytes:
    """Connections that begin something and then say nothing; they end with the attack."""
    whole = _call(_valid_message(chance))
    connections = [target.connect() for _ in range(chance.randint(5, 30))]
    for connection in connections:
        with suppress(OSError):
            connection.sendall(whole[: chance.randrange(len(whole))])
    answers = [_read(connection, 0.001) for connection in connections]
    for connection in connections:
        connection.close()
    return b"".join(answers)


def slow_sender(target: Target, chance: random.Random) -> bytes:
    """A proper call, a few bytes at a time."""
    whole = _call(_valid_message(chance))
    with target.connect() as connection:
        step = max(1, len(whole) // 40)
        for start in range(0, len(whole), step):
            with suppress(OSError):
                connection.sendall(whole[start : start + step])
            time.sleep(DRIP_S)
        return _read(connection, 0.2)


ATTACKS = (
    Attack("random bytes", 250, random_bytes),
    Attack("random frames", 220, random_frames),
    Attack("broken frames", 180, broken_frames),
    Attack("lying lengths", 80, lying_lengths),
    Attack("wrong calls", 100, wrong_calls),
    Attack("mutated messages", 120, mutated_messages),
    Attack("huge headers", 15, huge_headers),
    Attack("endless continuations", 10, endless_continuations),
    Attack("rapid reset", 10, rapid_reset),
    Attack("deep unknown fields", 10, deep_unknown_fields),
    Attack("half-open connections", 2, half_open),
    Attack("slow senders", 2, slow_sender),
    Attack("compression bombs", 1, compression_bomb),
)


def _call(message: bytes, headers: list[tuple[bytes, bytes]] | None = None, *, compressed: int = 0) -> bytes:
    """A connection with one call."""
    body = grpc_message(message, compressed=compressed)
    pieces = [body[start : start + 16_384] for start in range(0, len(body), 16_384)]
    data = b"".join(frame(DATA, 0, 1, piece) for piece in pieces[:-1]) + frame(
        DATA, END_STREAM, 1, pieces[-1]
    )
    block = header_block(call_headers() if headers is None else headers)
    return PREFACE + settings() + frame(HEADERS, END_HEADERS, 1, block) + data


def _end_of_name(data: bytearray) -> int:
    return data.find(METHOD.encode()) + len(METHOD)


def _valid_message(chance: random.Random) -> bytes:
    documents = ["some words " * chance.randint(0, 5) for _ in range(chance.randint(0, 4))]
    return rerank_pb2.RerankRequest(query="a query", documents=documents, top_n=2).SerializeToString()


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 128:
        encoded.append(value % 128 + 128)
        value //= 128
    return bytes([*encoded, value])


def _read(connection: socket.socket, patience_s: float) -> bytes:
    """What comes until it pauses; a reset is an answer like any other."""
    connection.settimeout(patience_s)
    received = b""
    with suppress(OSError):
        while len(received) < MOST_READ_BYTES and (piece := connection.recv(16_384)):
            received += piece
    return received
