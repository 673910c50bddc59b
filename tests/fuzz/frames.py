"""HTTP/2 by hand: a client that no library would let be as wrong as it is here."""

import struct
from collections.abc import Sequence

__all__ = [
    "CONTINUATION",
    "DATA",
    "END_HEADERS",
    "END_STREAM",
    "HEADERS",
    "METHOD",
    "PREFACE",
    "RST_STREAM",
    "call_headers",
    "frame",
    "grpc_message",
    "header_block",
    "settings",
]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, CONTINUATION = 0x0, 0x1, 0x3, 0x4, 0x9
END_STREAM, END_HEADERS = 0x1, 0x4
METHOD = "/rerank.v1.RerankService/Rerank"


def frame(kind: int, flags: int, stream: int, payload: bytes, *, length: int | None = None) -> bytes:
    """One frame; `length` is what it claims, the truth unless said otherwise."""
    claimed = len(payload) if length is None else length
    return struct.pack(">I", claimed & 0xFFFFFF)[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def settings() -> bytes:
    """What every connection begins with, after the preface."""
    return frame(SETTINGS, 0, 0, b"")


def header_block(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """HPACK in its plainest form: every field a literal, without Huffman or tables."""
    return b"".join(b"\x00" + _string(name) + _string(value) for name, value in headers)


def call_headers(
    *, method: str = METHOD, content_type: str = "application/grpc", extra: Sequence[tuple[bytes, bytes]] = ()
) -> list[tuple[bytes, bytes]]:
    """The headers of a call."""
    return [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", method.encode()),
        (b":authority", b"localhost"),
        (b"te", b"trailers"),
        (b"content-type", content_type.encode()),
        *extra,
    ]


def grpc_message(payload: bytes, *, compressed: int = 0, length: int | None = None) -> bytes:
    """A length-prefixed message."""
    return struct.pack(">BI", compressed, len(payload) if length is None else length) + payload


def _string(text: bytes) -> bytes:
    """A string literal with its length as a prefixed integer of 7 bits."""
    if len(text) < 127:
        return bytes([len(text)]) + text
    rest, encoded = len(text) - 127, bytearray([127])
    while rest >= 128:
        encoded.append(rest % 128 + 128)
        rest //= 128
    encoded.append(rest)
    return bytes(encoded) + text
