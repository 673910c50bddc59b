"""Large requests over gRPC, ours and TEI's; as bytes, since a library takes long to build them."""

import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from tests.fuzz.costly import Costly, Recipes
from tests.fuzz.fronts import Grpc
from tests.fuzz.large_texts import (
    HUGE,
    JSON_BYTES,
    LIMIT_BYTES,
    MAX_DOCUMENTS,
    QUERY_BYTES,
    huge_text,
    long_query,
    texts,
    words,
)

__all__ = [
    "COLLECT",
    "GRPC_CATALOGUE",
    "RERANK",
    "STREAM",
    "TEI",
    "field",
    "fill",
    "item",
    "number",
    "repeated",
]

RERANK = "rerank.v1.RerankService/Rerank"
STREAM = "rerank.v1.RerankService/RerankStream"
TEI = "tei.v1.Rerank/Rerank"
COLLECT = "tei.v1.Rerank/RerankStream"
# Methods that need no large field: what they are sent is parsed all the same.
REFLECTION = "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
PLAIN = {
    "rerank.v1.RerankService/GetModel": "unary_unary",
    "tei.v1.Info/Info": "unary_unary",
    "grpc.health.v1.Health/Check": "unary_unary",
    "grpc.health.v1.Health/Watch": "unary_stream",
    REFLECTION: "stream_stream",
}
# Fields of rerank.v1.RerankRequest; TEI's first two mean the same, and so do those of its stream.
QUERY, DOCUMENTS, _, ECHO, _, TRUNCATION, MAX_TOKENS, MODEL, PRIORITY, INSTRUCTION = range(1, 11)
TEI_TRUNCATE, TEI_ECHO = 3, 5
ERROR, CHUNK, BATCH = 2, 3, 2
UNKNOWN = 100
MESSAGES = 20_000
GROUP_DEPTH = 90
BOMB_BYTES = 16 * LIMIT_BYTES
BRIEF = frozenset(
    {
        (RERANK, "millions of empty documents"),
        (RERANK, "4,096 documents of 3.7 kB, echoed"),
        (RERANK, "8,000 words asked of 4,096 documents"),
        (RERANK, "windows of 190 words, 4,096 long documents"),
        (RERANK, "windows of one word, 4,096 documents"),
        (RERANK, "the query millions of times"),
        (RERANK, "unknown strings"),
        (RERANK, "10 MB of model"),
        (RERANK, "one document of 16 MiB, short words"),
        (RERANK, "one document of 16 MiB, letters and an emoji"),
        (RERANK, "a gzip bomb"),
        (TEI, "millions of empty documents"),
        (TEI, "4,096 texts of 3.7 kB, echoed"),
        (STREAM, "one query, millions of empty documents"),
        (STREAM, "64 queries of 64 documents of 3.7 kB"),
        (STREAM, "20,000 queries without documents"),
        (COLLECT, "20,000 texts"),
        ("grpc.health.v1.Health/Check", "unknown strings"),
    }
)


def field(tag: int, value: bytes) -> bytes:
    """A string, bytes or a message."""
    return _varint(tag << 3 | 2) + _varint(len(value)) + value


def number(tag: int, value: int) -> bytes:
    """A number, a truth or an enum's."""
    return _varint(tag << 3) + _varint(value)


def repeated(tag: int, values: Sequence[bytes]) -> bytes:
    """The same field for each value."""
    return b"".join(field(tag, value) for value in values)


def fill(piece: bytes, size_bytes: int = JSON_BYTES) -> bytes:
    """As many pieces as fit."""
    return piece * (size_bytes // len(piece))


def item(identifier: bytes, request: bytes) -> bytes:
    """One message of RerankStream."""
    return field(1, identifier) + field(2, request)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 128:
        encoded.append(value % 128 + 128)
        value //= 128
    return bytes([*encoded, value])


ASKED = field(QUERY, b"what is asked")
LONG = field(QUERY, long_query())


def _many(**size: int) -> bytes:
    return repeated(DOCUMENTS, texts(MAX_DOCUMENTS, **size))


def _shared() -> Recipes:
    """What a request of ours and one of TEI's can both be."""
    return {
        "millions of empty documents": lambda: ASKED + fill(field(DOCUMENTS, b"")),
        "millions of documents of a letter": lambda: ASKED + fill(field(DOCUMENTS, b"a")),
        "4,096 documents of 3.7 kB": lambda: ASKED + _many(),
        "4,096 equal documents of 3.7 kB": lambda: ASKED + field(DOCUMENTS, texts(1)[0]) * MAX_DOCUMENTS,
        "8,000 words asked of 4,096 documents": lambda: LONG + _many(size_bytes=14),
        "a word of 64 KiB asked of 4,096 documents": lambda: field(QUERY, b"q" * QUERY_BYTES) + _many(),
        "a query of 16 MiB": lambda: field(QUERY, words(JSON_BYTES)) + field(DOCUMENTS, b"d"),
        "the query millions of times": lambda: fill(field(QUERY, b"q")),
        "unknown strings": lambda: ASKED + fill(field(UNKNOWN, b"")),
        "unknown numbers": lambda: ASKED + fill(number(UNKNOWN, 0)),
        "unknown groups": lambda: ASKED + fill(b"\xa3\x06" * GROUP_DEPTH + b"\xa4\x06" * GROUP_DEPTH),
        "invalid UTF-8 after 16 MiB": lambda: ASKED + field(DOCUMENTS, b"x" * JSON_BYTES + b"\xff"),
        "millions of documents, the last invalid": lambda: (
            ASKED + fill(field(DOCUMENTS, b"a")) + field(DOCUMENTS, b"\xff")
        ),
        "16 MiB of noise": lambda: random.Random(0).randbytes(JSON_BYTES),
        "a byte too much": lambda: ASKED + field(DOCUMENTS, b"x" * LIMIT_BYTES),
    }


def _ours() -> Recipes:
    """What only rerank.v1.RerankRequest can be."""
    chunk, one_token = number(TRUNCATION, CHUNK), number(MAX_TOKENS, 1)
    whole, batch = number(TRUNCATION, ERROR), number(PRIORITY, BATCH)
    last = field(DOCUMENTS, b"a " * 20_000)
    recipes = {
        "4,096 documents of 3.7 kB, echoed": lambda: ASKED + number(ECHO, 1) + _many(),
        "windows of 190 words, 4,096 long documents": lambda: LONG + chunk + _many(),
        "windows of 190 words, 16 documents of 900 kB": lambda: (
            LONG + chunk + repeated(DOCUMENTS, texts(16, 900_000))
        ),
        "windows of one word, 4,096 documents": lambda: ASKED + chunk + one_token + _many(),
        "windows of one word, a long query": lambda: LONG + chunk + one_token + _many(),
        "documents cut to one word": lambda: ASKED + one_token + _many(),
        "the last of 4,096 documents must not be cut": lambda: ASKED + whole + _many() + last,
        "8,000 words asked of 4,096 documents as BATCH": lambda: LONG + batch + _many(size_bytes=14),
        "windows of 190 words as BATCH": lambda: LONG + chunk + batch + _many(),
        "10 MB of model": lambda: ASKED + field(MODEL, words(10_000_000)) + field(DOCUMENTS, b"d"),
        "10 MB of instruction": lambda: (
            ASKED + field(INSTRUCTION, words(10_000_000)) + field(DOCUMENTS, b"d")
        ),
    }
    for kind in HUGE:
        recipes[f"one document of 16 MiB, {kind}"] = partial(_huge, kind, b"")
        recipes[f"one document of 16 MiB in windows, {kind}"] = partial(_huge, kind, chunk)
    return recipes


def _teis() -> Recipes:
    """What only tei.v1.RerankRequest can be."""
    cut, echo = number(TEI_TRUNCATE, 1), number(TEI_ECHO, 1)
    recipes: dict[str, Callable[[], bytes]] = {
        "4,096 texts of 3.7 kB, echoed": lambda: ASKED + cut + echo + _many()
    }
    for kind in HUGE:
        recipes[f"one text of 16 MiB, {kind}"] = partial(_huge, kind, cut + echo)
    return recipes


def _huge(kind: str, options: bytes) -> bytes:
    return ASKED + options + field(DOCUMENTS, huge_text(kind))


def _streams() -> dict[str, Callable[[], list[bytes]]]:
    """Messages of RerankStream."""
    return {
        "64 queries of 64 documents of 3.7 kB": lambda: [
            item(b"%d" % each, ASKED + repeated(DOCUMENTS, texts(64))) for each in range(64)
        ],
        "64 queries of 8,000 words, of 64 documents each": lambda: [
            item(b"%d" % each, LONG + repeated(DOCUMENTS, texts(64, 14))) for each in range(64)
        ],
        "20,000 queries without documents": lambda: [item(b"%d" % each, ASKED) for each in range(MESSAGES)],
        "20,000 queries of a document": lambda: [
            item(b"%d" % each, ASKED + field(DOCUMENTS, b"d%d" % each)) for each in range(MESSAGES)
        ],
        "250 queries of 32,000 empty documents": lambda: [
            item(b"%d" % each, ASKED + fill(field(DOCUMENTS, b""), 65_000)) for each in range(250)
        ],
        "20,000 messages without an id": lambda: [b""] * MESSAGES,
        "an id of 8 MiB, twice": lambda: [item(b"x" * (JSON_BYTES // 2), ASKED + field(DOCUMENTS, b"d"))] * 2,
    }


def _collects() -> dict[str, Callable[[], list[bytes]]]:
    """Messages of TEI's stream, which together are one request."""
    return {
        "250 texts with 32,000 unknown fields each": lambda: [
            ASKED + fill(field(UNKNOWN, b""), 65_000) for _ in range(250)
        ],
        "20,000 texts": lambda: [ASKED + field(2, b"t")] * MESSAGES,
        "4,096 texts with 8,000 words asked each time": lambda: [LONG + field(2, b"t")] * MAX_DOCUMENTS,
        "4,096 texts of 3.7 kB": lambda: [ASKED + field(2, text) for text in texts(MAX_DOCUMENTS)],
        "4 texts with megabytes of unknown fields": lambda: (
            [ASKED + field(2, b"t") + fill(field(UNKNOWN, b""), JSON_BYTES // 4)] * 4
        ),
        "a text of 16 MiB": lambda: [ASKED + field(2, words(JSON_BYTES))],
    }


def _one(
    method: str, message: Callable[[], bytes], kind: str = "unary_unary", *, compressed: bool = False
) -> Grpc:
    return Grpc(method, [message()], kind, compressed)


def _several(method: str, messages: Callable[[], list[bytes]], kind: str) -> Grpc:
    return Grpc(method, messages(), kind)


def _in_a_stream(message: Callable[[], bytes]) -> Grpc:
    return Grpc(STREAM, [item(b"1", message())], "stream_stream")


def _catalogue() -> Iterator[Costly]:
    for method, recipes in ((RERANK, {**_shared(), **_ours()}), (TEI, {**_shared(), **_teis()})):
        for name, message in recipes.items():
            yield Costly(name, partial(_one, method, message), (method, name) in BRIEF)
        for name in ("millions of empty documents", "4,096 documents of 3.7 kB", "unknown strings"):
            yield Costly(f"{name}, gzip", partial(_one, method, recipes[name], compressed=True))
        bomb = partial(_one, method, partial(bytes, BOMB_BYTES), compressed=True)
        yield Costly("a gzip bomb", bomb, (method, "a gzip bomb") in BRIEF)
    for name, message in {**_shared(), **_ours()}.items():
        name = f"one query, {name}"
        yield Costly(name, partial(_in_a_stream, message), (STREAM, name) in BRIEF)
    for method, kind, series in (
        (STREAM, "stream_stream", _streams()),
        (COLLECT, "stream_unary", _collects()),
    ):
        for name, messages in series.items():
            yield Costly(name, partial(_several, method, messages, kind), (method, name) in BRIEF)
    described = field(4, b"rerank.v1.RerankService")  # file_containing_symbol
    asked = partial(_several, REFLECTION, lambda: [described] * MESSAGES, "stream_stream")
    yield Costly("20,000 questions", asked)
    for method, kind in PLAIN.items():
        for name, message in (
            ("unknown strings", partial(fill, field(UNKNOWN, b""))),
            ("a name of 16 MiB", lambda: field(1, huge_text("letters"))),
        ):
            yield Costly(name, partial(_one, method, message, kind), (method, name) in BRIEF)


GRPC_CATALOGUE: tuple[Costly, ...] = tuple(_catalogue())
