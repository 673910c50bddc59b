"""Large JSON bodies: what every parser of `/rerank` and `/score` meets, and each dialect at its largest."""

from functools import partial

from tests.fuzz.costly import Recipes
from tests.fuzz.large_texts import (
    HUGE,
    JSON_BYTES,
    MAX_DOCUMENTS,
    TEXT_BYTES,
    huge_text,
    long_query,
    texts,
    words,
)

__all__ = ["ask", "json_recipes", "listed", "many_objects", "many_strings", "score_recipes", "strings"]

NESTED = 1_000_000
NAMES = 100_000
LONG_NUMBER = b"9" * 4_300
CHUNK = b'"truncation":"chunk"'


def listed(item: bytes, size_bytes: int = JSON_BYTES) -> bytes:
    """A list of as many of these items as fit."""
    return b"[" + b",".join([item] * (size_bytes // (len(item) + 1))) + b"]"


def strings(values: list[bytes]) -> bytes:
    """A list of strings without quotes in them."""
    return b"[" + b",".join(b'"%b"' % value for value in values) + b"]"


def many_strings(size_bytes: int = TEXT_BYTES) -> bytes:
    """A list of as many strings as a request may have documents."""
    return strings(texts(MAX_DOCUMENTS, size_bytes))


def many_objects(size_bytes: int = TEXT_BYTES - 20) -> bytes:
    """The same as objects with a text."""
    return b"[" + b",".join(b'{"text":"%b"}' % text for text in texts(MAX_DOCUMENTS, size_bytes)) + b"]"


def ask(
    documents: bytes, *more: bytes, query: bytes = b'"what is asked"', field: bytes = b"documents"
) -> bytes:
    """A body with a query, more fields, and at last the documents under the name `field`."""
    return b"{" + b",".join([b'"query":%b' % query, *more, b'"%b":%b' % (field, documents)]) + b"}"


def _beside(value: bytes) -> bytes:
    """One document, with more than its text."""
    return ask(b'[{"text":"d","more":' + value + b"}]")


def _fields(count: int) -> bytes:
    return b",".join(b'"%07d":0' % number for number in range(count))


def _names() -> bytes:
    return b'"rank_fields":["text",' + b",".join(b'"n%d"' % number for number in range(NAMES)) + b"]"


def _one(text: bytes, *more: bytes) -> bytes:
    return ask(b'["' + text + b'"]', *more)


def _huge(kind: str, more: bytes) -> bytes:
    return _one(huge_text(kind), more)


def json_recipes() -> Recipes:
    """Bodies for `/rerank`, by what is large about them."""
    echo, details = b'"return_documents":true', b'"details":true'
    long = b'"' + long_query() + b'"'
    recipes = {
        "one document with a million fields": lambda: ask(
            b'[{"text":"d",' + _fields(JSON_BYTES // 12) + b"}]"
        ),
        "4,096 documents with 300 fields each": lambda: ask(listed(b'{"text":"d",' + _fields(300) + b"}")),
        "a million unknown fields": lambda: b'{"query":"q",' + _fields(JSON_BYTES // 12) + b"}",
        "an unknown field of millions of lists": lambda: ask(b'["d"]', b'"more":' + listed(b"[]")),
        "the query a million times": lambda: ask(b'["d"]', *[b'"query":"q"'] * (JSON_BYTES // 12)),
        "the documents a million times": lambda: ask(b'["d"]', *[b'"documents":["d"]'] * (JSON_BYTES // 18)),
        "a document nested [ a million times": lambda: _beside(b"[" * NESTED + b"]" * NESTED),
        "a document nested { a million times": lambda: _beside(b'{"a":' * NESTED + b"0" + b"}" * NESTED),
        "thousands of documents nested 900 deep": lambda: ask(
            listed(b'{"text":"d","more":' + b"[" * 900 + b"]" * 900 + b"}")
        ),
        "a number of 16 million digits for top_n": lambda: ask(b'["d"]', b'"top_n":' + b"9" * JSON_BYTES),
        "a number of 16 million digits in a document": lambda: _beside(b"9" * JSON_BYTES),
        "a fraction of 16 million digits in a document": lambda: _beside(b"0." + b"9" * JSON_BYTES),
        "thousands of numbers of 4,300 digits in a document": lambda: _beside(listed(LONG_NUMBER)),
        "a text of millions of escapes": lambda: _one(b"\\u4e2d" * (JSON_BYTES // 6)),
        "a text of escaped emoji": lambda: _one(b"\\ud83d\\ude00" * (JSON_BYTES // 12), echo),
        "a text of escaped control characters": lambda: _one(b"\\u0001" * (JSON_BYTES // 6), echo),
        "invalid UTF-8 after 16 MiB": lambda: _one(b"x" * JSON_BYTES + b"\xff"),
        "16 MiB of spaces": lambda: b" " * JSON_BYTES,
        "a string without an end": lambda: b'{"query":"' + b"x" * JSON_BYTES,
        "a query of 16 MiB": lambda: ask(b'["d"]', query=b'"' + words(JSON_BYTES) + b'"'),
        "10 MB of model": lambda: ask(b'["d"]', b'"model":"' + words(10_000_000) + b'"'),
        "10 MB of instruction": lambda: ask(b'["d"]', b'"instruction":"' + words(10_000_000) + b'"'),
        "10 MB for truncation": lambda: ask(b'["d"]', b'"truncation":"' + words(10_000_000) + b'"'),
        "4,096 documents of 3.7 kB": lambda: ask(many_strings()),
        "4,096 objects of 3.7 kB, echoed with details": lambda: ask(many_objects(), echo, details),
        "8,000 words asked of 4,096 documents": lambda: ask(many_strings(14), query=long),
        "windows of 190 words, 4,096 long documents": lambda: ask(many_strings(), CHUNK, query=long),
        "windows of one word, 4,096 documents": lambda: ask(many_strings(), CHUNK, b'"max_tokens_per_doc":1'),
        "100,000 rank_fields of 4,096 documents": lambda: ask(many_objects(3_300), _names()),
        "the same rank_field 100,000 times, one document": lambda: ask(
            b'[{"text":"' + words(TEXT_BYTES) + b'"}]', b'"rank_fields":' + listed(b'"text"', 700_000)
        ),
        "the same rank_field 100 times, 4,096 documents": lambda: ask(
            many_objects(), b'"rank_fields":' + listed(b'"text"', 700)
        ),
        "a rank_field whose words are four times as long as sent": lambda: ask(
            b'[{"a":["' + b"\x7f" * JSON_BYTES + b'"]}]', b'"rank_fields":["a"]'
        ),
        "two rank_fields with an emoji, echoed": lambda: ask(
            b'[{"text":"%b","b":"c"}]' % huge_text("letters and an emoji"),
            b'"rank_fields":["text","b"]',
            echo,
        ),
        "rank_fields of 250 kB, 4,096 documents": lambda: ask(
            listed(b'{"a":"b"}', 10 * MAX_DOCUMENTS),
            b'"rank_fields":["a",' + b",".join(b'"%d%b"' % (n, b"n" * 250_000) for n in range(60)) + b"]",
        ),
        "a rank_field with millions of lists": lambda: ask(
            b'[{"a":' + listed(b"[]") + b"}]", b'"rank_fields":["a"]'
        ),
        "a rank_field with thousands of numbers of 4,300 digits": lambda: ask(
            b'[{"a":' + listed(LONG_NUMBER) + b"}]", b'"rank_fields":["a"]'
        ),
    }
    for item in (b'""', b"{}", b"[]", b"0", b'"a"', b"null", b'{"text":""}'):
        recipes[f"millions of {item.decode()} for documents"] = partial(_all_equal, item)
    for item in (b"[]", b"{}", b"0", b"0.5", b'""', b'"ab"', b"1e300"):
        recipes[f"one document with millions of {item.decode()} beside its text"] = partial(
            _equal_beside, item
        )
    for kind in HUGE:
        recipes[f"one document of 16 MiB, {kind}"] = partial(_huge, kind, echo)
        recipes[f"one document of 16 MiB in windows, {kind}"] = partial(_huge, kind, CHUNK)
    return {**recipes, **_dialects(echo)}


def _all_equal(item: bytes) -> bytes:
    return ask(listed(item))


def _equal_beside(item: bytes) -> bytes:
    return _beside(listed(item))


def _dialects(echo: bytes) -> Recipes:
    asked = b'{"text":"q"}'
    return {
        "TEI: millions of empty texts": lambda: ask(listed(b'""'), field=b"texts"),
        "TEI: 4,096 texts, echoed": lambda: ask(many_strings(), b'"return_text":true', field=b"texts"),
        "NIM: a million empty passages": lambda: ask(listed(b'{"text":""}'), query=asked, field=b"passages"),
        "NIM: 4,096 passages": lambda: ask(many_objects(), query=asked, field=b"passages"),
        "Mixedbread: millions of empty objects": lambda: ask(listed(b"{}"), field=b"input"),
        "Mixedbread: 4,096 objects, echoed": lambda: ask(
            many_objects(), b'"return_input":true', field=b"input"
        ),
        "Mixedbread: 100,000 rank_fields": lambda: ask(many_objects(3_300), _names(), field=b"input"),
        "Voyage: millions of empty objects": lambda: ask(listed(b"{}"), b'"top_k":4096'),
        "Voyage: 4,096 objects, echoed": lambda: ask(many_objects(), b'"top_k":4096', echo),
        "Infinity: 4,096 objects, echoed": lambda: ask(
            many_objects(), b'"model":"m","raw_scores":true', echo
        ),
        "Infinity: 100,000 rank_fields": lambda: ask(
            many_objects(3_300), b'"model":"m","raw_scores":true', _names()
        ),
        "Weaviate: 4,096 documents": lambda: ask(many_strings(), b'"property":"p"'),
        "Weaviate: a property of 16 MiB": lambda: ask(b'["d"]', b'"property":"' + words(JSON_BYTES) + b'"'),
    }


def score_recipes() -> Recipes:
    """Bodies for `/score`."""
    empty = listed(b'""', JSON_BYTES // 2)

    def pairs(count: int, size_bytes: int = 12) -> bytes:
        return _pairs(strings(texts(count, size_bytes)), strings(texts(count, size_bytes)))

    return {
        "4,096 pairs": lambda: pairs(MAX_DOCUMENTS),
        "20,000 pairs": lambda: pairs(20_000),
        "4,096 pairs of 1.8 kB": lambda: pairs(MAX_DOCUMENTS, 1_800),
        "250 pairs of 32 kB": lambda: pairs(250, 32_000),
        "millions of empty pairs": lambda: _pairs(empty, empty),
        "millions of empty texts against one": lambda: _pairs(b'"q"', listed(b'""')),
        "millions of empty texts against three": lambda: _pairs(b'["a","b","c"]', listed(b'""')),
        "4,096 texts against 8,000 words": lambda: _pairs(b'"' + long_query() + b'"', many_strings(14)),
    }


def _pairs(left: bytes, right: bytes) -> bytes:
    return b'{"text_1":' + left + b',"text_2":' + right + b"}"
