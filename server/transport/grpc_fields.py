"""How many fields a serialised message has, counted before it is parsed.

An empty document is two bytes on the wire and far more as an object: 16 MiB of them would
take hundreds of megabytes before anybody could look at their number. So the wire format
(https://protobuf.dev/programming-guides/encoding/) is walked first, no further than the limit.
"""

from collections.abc import Iterator

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from server.errors import InvalidRequest, TooLarge

__all__ = ["FieldLimits"]

# Beside the repeated ones: what a message has once, and what a newer contract may add.
OTHER_FIELDS = 1000
_VARINT, _EIGHT_BYTES, _LENGTH, _START_GROUP, _END_GROUP, _FOUR_BYTES = range(6)


class FieldLimits:
    """The bound on each repeated field of one type of message, in it and in messages inside it."""

    def __init__(self, descriptor: Descriptor, most_repeated: int) -> None:
        self._descriptor = descriptor
        self._most_repeated = most_repeated

    def check(self, data: bytes) -> None:
        """Count fields; bytes that are no message are left to the parser.

        Raises:
            TooLarge: a field is repeated more often than a request may have documents.
            InvalidRequest: there are fields without end that the contract doesn't know.
        """
        counts: dict[str, int] = {}
        for field in _fields(data, 0, len(data), self._descriptor):
            name = field.name if field is not None and field.is_repeated else ""
            counts[name] = count = counts.get(name, 0) + 1
            if name and count > self._most_repeated:
                raise TooLarge(name, "the request", actual=None, limit=self._most_repeated, unit=name)
            if not name and count > OTHER_FIELDS:
                raise InvalidRequest(
                    "request",
                    f"has more than {OTHER_FIELDS:,} fields beside its documents; send each field once",
                )


def _fields(data: bytes, start: int, end: int, descriptor: Descriptor) -> Iterator[FieldDescriptor | None]:
    """Each field as it comes, None for unknown ones; stops at the first that makes no sense."""
    known = descriptor.fields_by_number
    while start < end:
        tag, start = _varint(data, start, end)
        kind, size = tag & 7, 0
        field = known.get(tag >> 3)
        yield field
        if kind == _VARINT:
            _, start = _varint(data, start, end)
        elif kind == _LENGTH:
            size, start = _varint(data, start, end)
            if field is not None and field.message_type is not None:
                yield from _fields(data, start, min(end, start + size), field.message_type)
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            size = 8 if kind == _EIGHT_BYTES else 4
        elif kind not in (_START_GROUP, _END_GROUP):
            return
        start += size


def _varint(data: bytes, start: int, end: int) -> tuple[int, int]:
    """(value, where it ends); one that never ends takes everything with it."""
    value = shift = 0
    while start < end:
        byte = data[start]
        start += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, start
        shift += 7
        if shift > 63:
            break
    return 0, end
