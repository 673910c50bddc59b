"""JSON into structs: leniently, and never into more values than a request can need."""

import re
from collections.abc import Iterator
from typing import TypeVar

import msgspec

from server.errors import InvalidRequest, TooLarge
from server.transport.offload import SMALL_BYTES

__all__ = ["check_values", "decode", "outside_strings"]

VALUES_PER_DOCUMENT = 64
"""On average: one document may have more fields when others have fewer."""
MAX_DIGITS = 400
"""Of one number: no float has more before its point, and converting a number takes its length squared."""
_TOO_MANY_DIGITS = b"0" * (MAX_DIGITS + 1)
_ANY_DIGIT = bytes.maketrans(b"123456789", b"0" * 9)
SLICE_BYTES = 64 * 1024
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


def check_values(body: bytearray, max_documents: int) -> None:
    """Refuse a body of very many values, or of endless numbers, before it becomes objects.

    Three bytes of it can become a hundred.

    Raises:
        TooLarge: more values than `VALUES_PER_DOCUMENT` for each document that is allowed.
        InvalidRequest: a number of more than `MAX_DIGITS` digits.
    """
    if len(body) < SMALL_BYTES:
        return
    # The request's own fields come on top of the documents.
    limit = VALUES_PER_DOCUMENT * (max_documents + 1)
    values = 0
    for outside in outside_strings(body):
        # One of these precedes each value.
        values += outside.count(b",") + outside.count(b"[") + outside.count(b"{")
        if values > limit:
            raise TooLarge("body", "the request", actual=None, limit=limit, unit="JSON values")
        if _TOO_MANY_DIGITS in outside.translate(_ANY_DIGIT):
            raise InvalidRequest(
                "body", f"has a number of more than {MAX_DIGITS} digits; send it as a string"
            )


def outside_strings(body: bytearray, slice_bytes: int = SLICE_BYTES) -> Iterator[bytes]:
    """What is outside of JSON's strings, slice by slice.

    Other threads get on between two slices; decoding lets nobody in before it ends.
    """
    in_string = False
    escape = b""
    for start in range(0, len(body), slice_bytes):
        # Without its escapes, every quote that is left begins or ends a string.
        piece = (escape + body[start : start + slice_bytes]).replace(b"\\\\", b"")
        escape = b"\\" if piece.endswith(b"\\") else b""
        parts = piece.replace(b'\\"', b"").split(b'"')
        yield b"".join(parts[1 if in_string else 0 :: 2])
        in_string ^= len(parts) % 2 == 0


def decode(body: bytearray, kind: type[T]) -> T:
    """Parse JSON as leniently as its meaning allows: "true" is true, "3" is 3, unknown fields are ignored.

    Raises:
        InvalidRequest: not JSON, or a field is missing or of another kind; the message names it.
    """
    try:
        return msgspec.json.decode(body, type=kind, strict=False)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        if not body.strip():
            raise InvalidRequest("body", "is empty; send a JSON object such as {query, documents}") from None
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
