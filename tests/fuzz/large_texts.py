"""Large texts: many words, no words, wide characters."""

__all__ = [
    "HUGE",
    "JSON_BYTES",
    "LIMIT_BYTES",
    "MAX_DOCUMENTS",
    "QUERY_BYTES",
    "TEXT_BYTES",
    "huge_text",
    "long_query",
    "texts",
    "words",
]

LIMIT_BYTES = 16 * 1024 * 1024
"""The server's default for one request."""
MAX_DOCUMENTS = 4096
QUERY_BYTES = 64 * 1024
JSON_BYTES = LIMIT_BYTES - 2 * QUERY_BYTES
"""What can be filled of a request, with room for a query and what encloses it."""
TEXT_BYTES = 3_700
"""Of each of so many documents: nearly the whole request, and nearly all tokens that may wait by default."""
_WORDS = b"candidates retrieved documents something "
_PIECES = {
    "words": _WORDS,
    "letters": b"x",
    "spaces": b" ",
    "short words": b"a ",
    "punctuation": b"!",
    "emoji": "\U0001f600".encode(),
    "no spaces": "漢".encode(),
    "accents": "e\u0301".encode(),
    # One character beyond the basic plane makes every other take four bytes in Python.
    "letters and an emoji": b"x",
}
HUGE = tuple(_PIECES)
"""What huge texts are made of."""


def words(size_bytes: int, *, first: int = 0) -> bytes:
    """Long words, different at the beginning for every `first`."""
    beginning = b"word%d " % first
    return (beginning + _WORDS * (size_bytes // len(_WORDS) + 1))[:size_bytes]


def texts(count: int, size_bytes: int = TEXT_BYTES) -> list[bytes]:
    """Different texts of this size."""
    return [words(size_bytes, first=number) for number in range(count)]


def long_query(count: int = 8_000) -> bytes:
    """A query of so many words that little room is left for a document."""
    return b"".join(b"%07d " % number for number in range(count))


def huge_text(kind: str, size_bytes: int = JSON_BYTES) -> bytes:
    """One text of nearly this size, of one of the kinds of `HUGE`."""
    piece = _PIECES[kind]
    last = "\U0001f600".encode() if kind == "letters and an emoji" else b""
    return piece * ((size_bytes - len(last)) // len(piece)) + last
