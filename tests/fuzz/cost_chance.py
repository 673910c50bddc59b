"""Large requests by chance: fields of any size in any combination, over every front, from a seed."""

import gzip
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tests.fuzz.costly import Costly
from tests.fuzz.costly_messages import (
    CHUNK,
    COLLECT,
    DOCUMENTS,
    ECHO,
    ERROR,
    INSTRUCTION,
    MAX_TOKENS,
    MODEL,
    PRIORITY,
    QUERY,
    RERANK,
    STREAM,
    TEI,
    TEI_ECHO,
    TEI_TRUNCATE,
    TRUNCATION,
    UNKNOWN,
    field,
    item,
    number,
)
from tests.fuzz.fronts import Grpc, Http, Request
from tests.fuzz.large_texts import HUGE, JSON_BYTES, LIMIT_BYTES, MAX_DOCUMENTS, QUERY_BYTES, huge_text

__all__ = ["costly_by_chance"]

# More different texts than this take long to make; the rest repeats them.
DIFFERENT = 5_000
MOST_MESSAGES = 20_000
_OURS = {0: None, ERROR: "error", CHUNK: "chunk"}


@dataclass(frozen=True, slots=True)
class _Ingredients:
    query: str
    """What the query is made of."""
    query_bytes: int
    documents: str
    """What the documents are made of."""
    count: int
    document_bytes: int
    truncation: int
    max_tokens: int
    batch: bool
    echo: bool
    more: int
    """A field of names, or one that nobody knows, and how large it is."""
    more_bytes: int
    names: int
    """Of rank_fields."""
    compressed: bool

    def text(self) -> bytes:
        return huge_text(self.documents, self.document_bytes)

    def texts(self) -> list[bytes]:
        text = self.text()
        different = [b"%d %b" % (each, text) for each in range(min(self.count, DIFFERENT))]
        return different + [text] * (self.count - len(different))

    def asked(self) -> bytes:
        return huge_text(self.query, self.query_bytes) or b"q"


def costly_by_chance(seed: int) -> Costly:
    """The request of this seed."""
    chance = random.Random(seed)
    front = chance.choice(list(_FRONTS))
    ingredients = _draw(chance)
    return Costly(f"seed {seed}: {_in_words(ingredients)}", partial(_FRONTS[front], ingredients))


def _draw(chance: random.Random) -> _Ingredients:
    # Mostly what is permitted: a refusal ends most of the work.
    refusable = chance.random() < 0.2
    room_bytes = _up_to(chance, JSON_BYTES)
    more_bytes = _up_to(chance, JSON_BYTES // 2) if refusable else 0
    counts = [1, 64, MAX_DOCUMENTS, _up_to(chance, MAX_DOCUMENTS)]
    query_bytes = [10, 1_000, 50_000, QUERY_BYTES]
    if refusable:
        counts += [MAX_DOCUMENTS + 1, _up_to(chance, room_bytes // 2 + 1)]
        query_bytes += [QUERY_BYTES + 1, _up_to(chance, JSON_BYTES // 4)]
    count = chance.choice(counts)
    return _Ingredients(
        query=chance.choice([kind for kind in HUGE if kind != "spaces"]),
        query_bytes=chance.choice(query_bytes),
        documents=chance.choice(HUGE),
        count=count,
        # Each has a number before it and some bytes around it.
        document_bytes=max(0, (room_bytes - more_bytes) // count - 14),
        truncation=ERROR if refusable else chance.choice([0, CHUNK]),
        max_tokens=chance.choice([0, 0, 1, 2, 100]),
        batch=chance.random() < 0.3,
        echo=chance.random() < 0.5,
        more=chance.choice([MODEL, INSTRUCTION, UNKNOWN]),
        more_bytes=more_bytes,
        names=chance.choice([0, 1, 60, 10_000 if refusable else 2]),
        compressed=chance.random() < 0.15,
    )


def _up_to(chance: random.Random, most: int) -> int:
    """Small and large numbers alike."""
    return int(most ** chance.random())


def _in_words(of: _Ingredients) -> str:
    return (
        f"query {of.query} {of.query_bytes}, {of.count} of {of.documents} {of.document_bytes}, "
        f"truncation {of.truncation}, max {of.max_tokens}, more {of.more} {of.more_bytes}, "
        f"names {of.names}{', BATCH' if of.batch else ''}{', echo' if of.echo else ''}"
        f"{', gzip' if of.compressed else ''}"
    )


def _ours(of: _Ingredients) -> bytes:
    more = field(of.more, huge_text("letters", of.more_bytes)) if of.more_bytes else b""
    options = number(TRUNCATION, of.truncation) + number(MAX_TOKENS, of.max_tokens) + number(ECHO, of.echo)
    documents = b"".join(field(DOCUMENTS, text) for text in of.texts())
    return field(QUERY, of.asked()) + options + number(PRIORITY, 2 if of.batch else 0) + more + documents


def _teis(of: _Ingredients) -> bytes:
    more = field(UNKNOWN, huge_text("letters", of.more_bytes)) if of.more_bytes else b""
    options = number(TEI_TRUNCATE, of.truncation != ERROR) + number(TEI_ECHO, of.echo)
    return field(QUERY, of.asked()) + options + more + b"".join(field(DOCUMENTS, text) for text in of.texts())


def _rerank(of: _Ingredients) -> Request:
    return Grpc(RERANK, [_ours(of)], compressed=of.compressed)


def _rerank_tei(of: _Ingredients) -> Request:
    return Grpc(TEI, [_teis(of)], compressed=of.compressed)


def _rerank_stream(of: _Ingredients) -> Request:
    return Grpc(STREAM, [item(b"1", _ours(of))], "stream_stream", of.compressed)


def _collect(of: _Ingredients) -> Request:
    # The query goes with each text, and all together are one request.
    asked = of.asked()
    count = min(MOST_MESSAGES, LIMIT_BYTES // (len(asked) + of.document_bytes + 1) + 1)
    messages = [field(QUERY, asked) + field(DOCUMENTS, text) for text in of.texts()[:count]]
    return Grpc(COLLECT, messages, "stream_unary", of.compressed)


def _json(of: _Ingredients, **fields: object) -> bytes:
    body = json.dumps({"query": of.asked().decode(errors="ignore"), **fields}).encode()
    return gzip.compress(body, 1) if of.compressed else body


def _headers(of: _Ingredients) -> dict[str, str]:
    return {"content-encoding": "gzip"} if of.compressed else {"accept-encoding": "gzip"}


def _strings(of: _Ingredients) -> list[str]:
    return [text.decode(errors="ignore") for text in of.texts()]


def _http(of: _Ingredients) -> Request:
    documents: list[object] = list(_strings(of))
    if of.names:
        documents = [{"text": text, "more": [text]} for text in documents]
    body = _json(
        of,
        documents=documents,
        rank_fields=["text", "more", *map(str, range(of.names))][: of.names],
        truncation=_OURS[of.truncation],
        max_tokens_per_doc=of.max_tokens,
        priority=int(of.batch),
        return_documents=of.echo,
        details=of.echo,
        **{"model" if of.more == MODEL else "nobody_knows": "x" * of.more_bytes},
    )
    return Http("/rerank", body, _headers(of))


def _http_tei(of: _Ingredients) -> Request:
    body = _json(of, texts=_strings(of), return_text=of.echo, truncate=of.truncation != ERROR)
    return Http("/rerank", body, _headers(of))


def _score(of: _Ingredients) -> Request:
    texts = _strings(of)
    return Http("/score", _json(of, text_1=texts if of.echo else texts[:1], text_2=texts), _headers(of))


_FRONTS: dict[str, Callable[[_Ingredients], Request]] = {
    "grpc": _rerank,
    "grpc stream": _rerank_stream,
    "tei": _rerank_tei,
    "tei stream": _collect,
    "http": _http,
    "http tei": _http_tei,
    "score": _score,
}
