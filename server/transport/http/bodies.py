"""Request bodies: bounded before they are read, decompressed within the same bound, decoded."""

import re
import zlib
from typing import TypeVar

import msgspec
from starlette.requests import Request

from server.errors import InvalidRequest, TooLarge
from server.transport.http.errors import UnsupportedEncoding

__all__ = ["LARGE_BODY_BYTES", "decode", "decompress", "read_body"]

# From here on a body is worth a thread: decompressing it would hold the event loop up.
LARGE_BODY_BYTES = 64 * 1024
# zlib takes both gzip and zlib ("deflate") with this.
_EITHER_FORMAT = 32 + zlib.MAX_WBITS
_WHERE = re.compile(r" - at `\$\.?(?P<path>[^`]*)`$")
_MISSING = re.compile(r"Object missing required field `(?P<name>[^`]+)`")
_NAMES = {
    "`str`": "a string",
    "`int`": "a whole number",
    "`float`": "a number",
    "`bool`": "true or false",
    "`array`": "a list",
    "`object`": "an object",
}

T = TypeVar("T")


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """Read a body as it was sent.

    Raises:
        TooLarge: more than `limit_bytes`, by its header before anything is read, or by count.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit_bytes:
        raise _too_large(int(announced), limit_bytes)
    pieces = []
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > limit_bytes:
            raise _too_large(size, limit_bytes)
        pieces.append(piece)
    return b"".join(pieces)


def decompress(body: bytes, encoding: str, limit_bytes: int) -> bytes:
    """Undo Content-Encoding, never holding more than `limit_bytes` of the result.

    Raises:
        UnsupportedEncoding: neither gzip, deflate nor identity.
        InvalidRequest: the body is not what its header says.
        TooLarge: it holds more than `limit_bytes`.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise UnsupportedEncoding(f"content-encoding {encoding!r} is not known; use gzip, or none")
    pieces: list[bytes] = []
    room = limit_bytes
    # A gzip file may consist of several members.
    while body:
        decoder = zlib.decompressobj(_EITHER_FORMAT)
        try:
            piece = decoder.decompress(body, room + 1)
        except zlib.error:
            raise InvalidRequest("body", f"is not {encoding}, as content-encoding says") from None
        room -= len(piece)
        if room < 0:
            raise TooLarge(
                "body", "the decompressed body", actual=limit_bytes - room, limit=limit_bytes, unit="bytes"
            )
        if not decoder.eof:
            raise InvalidRequest("body", f"the {encoding} data ends too early")
        pieces.append(piece)
        body = decoder.unused_data
    return b"".join(pieces)


def decode(body: bytes, kind: type[T]) -> T:
    """Parse JSON as leniently as its meaning allows: "true" is true, "3" is 3, unknown fields are ignored.

    Raises:
        InvalidRequest: not JSON, or a field is missing or of another kind; the message names it.
    """
    if not body.strip():
        raise InvalidRequest("body", "is empty; send a JSON object such as {query, documents}")
    try:
        return msgspec.json.decode(body, type=kind, strict=False)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest("body", f"is not valid JSON: {error}") from None
    except RecursionError:
        raise InvalidRequest("body", "is nested too deeply") from None


def _invalid(why: str) -> InvalidRequest:
    """msgspec's complaint in our words: "Expected `str`, got `int` - at `$.documents[3]`"."""
    where = _WHERE.search(why)
    path = where["path"] if where else ""
    why = why[: where.start()] if where else why
    missing = _MISSING.fullmatch(why)
    if missing:
        name = f"{path}.{missing['name']}" if path else missing["name"]
        return InvalidRequest(name, "is missing")
    for name, words in _NAMES.items():
        why = why.replace(name, words)
    return InvalidRequest(path or "body", why[:1].lower() + why[1:])


def _too_large(actual: int, limit: int) -> TooLarge:
    return TooLarge("body", "the request", actual=actual, limit=limit, unit="bytes")
