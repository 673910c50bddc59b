"""Large requests over HTTP: JSON, compression, and HTTP itself."""

import gzip
import random
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from tests.fuzz.costly import Costly, Recipes
from tests.fuzz.costly_json import ask, json_recipes, listed, many_strings, score_recipes
from tests.fuzz.fronts import Http, Raw
from tests.fuzz.large_texts import JSON_BYTES, LIMIT_BYTES

__all__ = ["HTTP_CATALOGUE"]

# Those that stand for the others of their kind.
BRIEF = frozenset(
    {
        'millions of "" for documents',
        "millions of {} for documents",
        "one document with millions of [] beside its text",
        "one document with a million fields",
        "a document nested [ a million times",
        "a number of 16 million digits for top_n",
        "invalid UTF-8 after 16 MiB",
        "one document of 16 MiB, letters and an emoji",
        "4,096 objects of 3.7 kB, echoed with details",
        "100,000 rank_fields of 4,096 documents",
        "the same rank_field 100,000 times, one document",
        "4,096 pairs",
        "20,000 pairs",
        "millions of empty pairs",
        "gzip of many empty members",
        "gzip of many members of a byte",
        "a gzip bomb",
        "4,096 documents, echoed and compressed",
        "millions of headers",
        "a header of 16 MiB",
        "a path of 16 MiB",
        "16 MiB in chunks of a byte",
        "pipelined requests",
    }
)
PIPELINED = 100_000
MEMBERS = 600_000
BOMB_BYTES = 16 * LIMIT_BYTES
GZIP = {"content-encoding": "gzip"}
DEFLATE = {"content-encoding": "deflate"}
TAKES_GZIP = {"accept-encoding": "gzip"}
JSON_TYPE = {"content-type": "application/json"}
BEGINNING = b"POST /rerank HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
CHUNKED = BEGINNING + b"transfer-encoding: chunked\r\n\r\n"


def _compressed() -> Mapping[str, tuple[Mapping[str, str], Callable[[], bytes]]]:
    """Bodies that unpack, or answers that are packed."""
    member = gzip.compress(b"")
    return {
        "gzip of many empty members": (GZIP, lambda: member * (JSON_BYTES // len(member))),
        "gzip of many members of a byte": (GZIP, lambda: gzip.compress(b" ") * MEMBERS),
        "a gzip bomb": (GZIP, lambda: gzip.compress(bytes(BOMB_BYTES))),
        "a deflate bomb": (DEFLATE, lambda: zlib.compress(bytes(BOMB_BYTES))),
        "noise said to be gzip": (GZIP, lambda: member[:10] + random.Random(0).randbytes(JSON_BYTES)),
        "gzip of millions of empty strings": (GZIP, lambda: gzip.compress(ask(listed(b'""')))),
        "gzip of millions of empty objects": (GZIP, lambda: gzip.compress(ask(listed(b"{}")))),
        "gzip of 16 MiB of noise": (GZIP, lambda: gzip.compress(random.Random(0).randbytes(JSON_BYTES))),
        "4,096 documents, echoed and compressed": (
            TAKES_GZIP,
            lambda: ask(many_strings(), b'"return_documents":true'),
        ),
    }


def _protocol() -> Recipes:
    """Bytes for the port that are hardly HTTP."""
    small = b'{"query":"q","documents":["d"]}'
    return {
        "millions of headers": lambda: BEGINNING + b"a:b\r\n" * (JSON_BYTES // 5) + b"\r\n",
        "a header of 16 MiB": lambda: BEGINNING + b"a: " + b"x" * JSON_BYTES + b"\r\n\r\n",
        "a path of 16 MiB": lambda: b"GET /" + b"x" * JSON_BYTES + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        "16 MiB in chunks of a byte": lambda: CHUNKED + b"1\r\n \r\n" * (JSON_BYTES // 6) + b"0\r\n\r\n",
        "a byte too much in one chunk": lambda: (
            CHUNKED + b"%x\r\n" % (LIMIT_BYTES + 1) + b" " * (LIMIT_BYTES + 1) + b"\r\n0\r\n\r\n"
        ),
        "trailers of 16 MiB": lambda: CHUNKED + b"1\r\n \r\n0\r\n" + b"a:b\r\n" * (JSON_BYTES // 5) + b"\r\n",
        "pipelined requests": lambda: b"GET /ping HTTP/1.1\r\nhost: x\r\n\r\n" * PIPELINED,
        "pipelined small reranks": lambda: (
            (b"POST /rerank HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(small), small))
            * PIPELINED
        ),
    }


def _http(path: str, headers: Mapping[str, str], body: Callable[[], bytes], method: str = "POST") -> Http:
    return Http(path, body(), {**JSON_TYPE, **headers}, method)


def _raw(data: Callable[[], bytes]) -> Raw:
    return Raw("itself", data())


def _catalogue() -> Iterator[Costly]:
    for path, recipes in (("/rerank", json_recipes()), ("/score", score_recipes())):
        for name, body in recipes.items():
            yield Costly(name, partial(_http, path, {}, body), name in BRIEF)
    for name, (headers, body) in _compressed().items():
        yield Costly(name, partial(_http, "/rerank", headers, body), name in BRIEF)
    for name, data in _protocol().items():
        yield Costly(name, partial(_raw, data), name in BRIEF)
    for path in ("/nowhere", "/health", "/rerank/"):
        yield Costly("16 MiB that nobody reads", partial(_http, path, {}, partial(bytes, LIMIT_BYTES)))
    yield Costly("16 MiB with GET", partial(_http, "/health", {}, partial(bytes, LIMIT_BYTES), "GET"))
    yield Costly("a byte too much", partial(_http, "/rerank", {}, partial(bytes, LIMIT_BYTES + 1)))
    for path in ("/v1/ranking", "/v1/reranking", "/v2/rerank"):
        yield Costly("millions of empty objects", partial(_http, path, {}, partial(_empty_objects, path)))


def _empty_objects(path: str) -> bytes:
    field = {"/v1/ranking": b"passages", "/v1/reranking": b"input"}.get(path, b"documents")
    return ask(listed(b"{}"), field=field)


HTTP_CATALOGUE: tuple[Costly, ...] = tuple(_catalogue())
