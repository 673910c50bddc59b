"""What one HTTP request may cost: values, texts, gzip members, pairs; and who pays."""

import gzip
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.transport.http.decoding import outside_strings
from tests.compat.http_server import HttpServerProcess, post
from tests.support.waiting import wait_until

KEY = "search-key-0123456789"
MIB = 1024 * 1024


def peak_mib(server: HttpServerProcess) -> float:
    """The most memory that the server ever held."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServerProcess]:
    """Ordinary limits, and a device that costs no time."""
    options = ("--simulated-tokens-per-second", "100000000")
    with HttpServerProcess(tmp_path_factory.mktemp("fast"), *options) as process:
        yield process


@pytest.mark.parametrize("unit", [b'"",', b"{},", b"[],", b"0,", b'{"text":"a"},'])
def test_very_many_values_are_refused_before_they_exist(fast: HttpServerProcess, unit: bytes) -> None:
    """16 MiB of them would be hundreds of megabytes of objects."""
    before_mib = peak_mib(fast)
    body = b'{"query":"q","documents":[' + unit * (16 * MIB // len(unit) - 20) + b'"a"]}'
    answer = post(fast, "/rerank", body)
    assert (answer.status, answer.json["error"]["param"]) == (413, "body")
    assert "too many JSON values; the limit is 262,208" in answer.json["message"]
    assert peak_mib(fast) - before_mib < 100


def test_many_values_are_no_hindrance_to_text(fast: HttpServerProcess) -> None:
    """Commas, brackets and quotes inside of documents count for nothing."""
    document = ',[{"\\' * 100_000
    answer = post(fast, "/rerank", {"query": "q", "texts": ["a", document]}, timeout_s=60)
    assert len(answer.json) == 2


@settings(max_examples=100)
@given(
    value=st.recursive(
        st.none() | st.integers() | st.text(alphabet=',[{"\\a\n\x01é😀'),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(alphabet='"\\,{a'), inner),
    ),
    slice_bytes=st.integers(1, 9),
    ascii_only=st.booleans(),
)
def test_values_are_counted_as_a_parser_sees_them(value: Any, slice_bytes: int, ascii_only: bool) -> None:
    """Wherever the slices end: in a string, or between a backslash and what it escapes."""

    def expected(value: Any) -> int:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
        return 0 if inner is None else max(1, len(value)) + sum(map(expected, inner))

    body = bytearray(json.dumps(value, ensure_ascii=ascii_only).encode())
    outside = b"".join(outside_strings(body, slice_bytes))
    assert sum(map(outside.count, (b",", b"[", b"{"))) == expected(value)


def test_a_number_without_end_is_refused(fast: HttpServerProcess) -> None:
    """Converting it takes its length squared, and lets nobody else in meanwhile."""
    digits = ",".join(["7" * 4300] * 50)
    body = f'{{"query": "q", "documents": [{{"text": "{"7" * 100_000}", "n": [{digits}]}}]}}'
    answer = post(fast, "/rerank", body.encode())
    assert (answer.status, "more than 400 digits" in answer.json["message"]) == (400, True)
    inside_a_string = body.replace(f"[{digits}]", "0")
    assert post(fast, "/rerank", inside_a_string.encode()).status == 200


def test_a_field_to_rank_by_counts_once(fast: HttpServerProcess) -> None:
    """However often it is named: one megabyte would become gigabytes of text."""
    documents = [{"title": "word " * 2000, "text": "x"}, {"title": "other", "text": "y"}]
    once = {"query": "word", "documents": documents, "rank_fields": ["title", "text"], "model": "m"}
    often = {**once, "rank_fields": ["title", "text"] * 50_000}
    before_mib = peak_mib(fast)
    one, other = post(fast, "/v1/rerank", once), post(fast, "/v1/rerank", often)
    assert one.json["results"] == other.json["results"]
    assert peak_mib(fast) - before_mib < 100


@pytest.mark.parametrize(
    ("path", "body", "field", "words"),
    [
        (
            "/v1/rerank",
            {"query": "q", "documents": [{"text": "a"}], "rank_fields": [f"f{n}" for n in range(65)]},
            "rank_fields",
            "65 fields; the limit is 64",
        ),
        (
            "/v1/rerank",
            # As a line of text each of these is four bytes rather than two.
            {"query": "q", "documents": [{"a": {"b": "\x80" * 200_000}}] * 2, "rank_fields": ["a"]},
            "rank_fields",
            "the text of documents up to [1] has 1,600,0",
        ),
        ("/v1/rerank", {"query": "q", "documents": [{}] * 101}, "documents", "101 documents"),
        ("/v1/reranking", {"query": "q", "input": [{}] * 101}, "input", "101 documents"),
        ("/rerank", {"query": "q", "documents": [{}] * 101, "top_k": 1}, "documents", "101 documents"),
        ("/v1/ranking", {"query": {"text": "q"}, "passages": [{"text": ""}] * 101}, "passages", "101 doc"),
        ("/score", {"text_1": ["q"] * 101, "text_2": ["a"] * 101}, "text_1", "101 documents"),
        ("/score", {"queries": "q", "documents": ["a"] * 101}, "documents", "101 documents"),
    ],
)
def test_texts_are_bounded_while_they_are_built(
    server: HttpServerProcess, path: str, body: Any, field: str, words: str
) -> None:
    """Before the first of them when there are too many; the message names the caller's own field."""
    answer = post(server, path, json.dumps(body, ensure_ascii=False).encode())
    assert (answer.status, answer.json["error"]["param"]) == (413, field)
    assert words in answer.json["message"]


def test_texts_of_tei_and_weaviate_are_counted_too(server: HttpServerProcess) -> None:
    """In errors of their own shape."""
    tei = post(server, "/rerank", {"query": "q", "texts": ["a"] * 101})
    assert (tei.status, tei.json["error"].partition(":")[0]) == (413, "texts")
    assert post(server, "/rerank", {"query": "q", "documents": ["a"] * 101, "property": "p"}).status == 413


def test_what_is_nested_too_deeply_to_be_text_is_refused(fast: HttpServerProcess) -> None:
    """Or scored: never an internal error."""
    for depth in (400, 900, 990):
        document = '{"a":' * depth + "1" + "}" * depth
        body = f'{{"query":"q","documents":[{document}],"rank_fields":["a"],"model":"m"}}'
        assert post(fast, "/v1/rerank", body.encode()).status in (200, 400)


@pytest.mark.parametrize("packed", [gzip.compress(b"") * 50_000, gzip.compress(b" ") * 2000])
def test_very_many_gzip_members_are_refused_at_once(server: HttpServerProcess, packed: bytes) -> None:
    """Each would cost a copy of all that follows it."""
    started_s = time.monotonic()
    answer = post(server, "/rerank", packed, headers={"content-encoding": "gzip"})
    assert answer.status == 413
    assert "gzip members or more; the limit is 1,024" in answer.json["message"]
    assert time.monotonic() - started_s < 3


def test_a_body_of_several_gzip_members_is_one_body(server: HttpServerProcess) -> None:
    """As they come from tools that compress in blocks, of whatever size."""
    documents = [f"{number:09} {'text ' * 200}" for number in range(100)]
    body = json.dumps({"query": "q", "documents": documents}).encode()
    for size in (1000, 16_384, 50_000):
        pieces = (body[start : start + size] for start in range(0, len(body), size))
        packed = b"".join(gzip.compress(piece, compresslevel=0) for piece in pieces)
        answer = post(server, "/rerank", packed, headers={"content-encoding": "gzip"})
        assert len(answer.json["results"]) == 100


def test_pairs_of_texts_have_the_limits_of_documents(fast: HttpServerProcess) -> None:
    """All that are allowed are answered, in the order of the request; one more is refused."""
    queries, documents = [f"query {n}" for n in range(4096)], [f"text {n}" for n in range(4096)]
    answer = post(fast, "/score", {"text_1": queries, "text_2": documents}, timeout_s=60)
    assert [score["index"] for score in answer.json["data"]] == list(range(4096))
    answer = post(fast, "/score", {"text_1": [*queries, "q"], "text_2": [*documents, "d"]})
    assert (answer.status, answer.json["error"]["param"]) == (413, "text_1")


def test_a_pair_of_texts_fails_alone(server: HttpServerProcess) -> None:
    """It is absent from the data, and named by its place in the whole request."""
    answer = post(
        server,
        "/score",
        {"text_1": ["red"] * 4, "text_2": ["a red", "simulate_nan 1", "red", "simulate_nan 2"]},
    )
    assert [score["index"] for score in answer.json["data"]] == [0, 2]
    assert [failure["index"] for failure in answer.json["failures"]] == [1, 3]
    assert answer.headers["x-failed-documents"] == "1,3"
    one = post(server, "/score", {"text_1": "red", "text_2": ["simulate_nan", "red"]})
    assert [failure["index"] for failure in one.json["failures"]] == [0]


def metric(server: HttpServerProcess, name: str) -> float:
    text = httpx.get(server.url + "/metrics", trust_env=False).text
    return sum(float(line.split()[1]) for line in text.splitlines() if line.startswith(name + " "))


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[HttpServerProcess]:
    """A server on which a thousand words take a second, and a key may use 2000 a minute."""
    keys = tmp_path / "keys"
    keys.write_text(f"search {KEY} tokens_per_minute=2000\nother {KEY}-2\n")
    options = ("--api-keys-file", str(keys), "--simulated-tokens-per-second", "1000")
    with HttpServerProcess(tmp_path, *options, "--pair-cache-mib", "0") as process:
        yield process


def load_of(server: HttpServerProcess, key: str = f"{KEY}-2") -> Any:
    headers = {"x-api-key": key}
    return httpx.get(server.url + "/info", headers=headers, trust_env=False).json()["server"]


def hang_up_on(server: HttpServerProcess, path: str, body: Any) -> None:
    """Leave once the request is worked on."""
    with httpx.Client(trust_env=False) as client, pytest.raises(httpx.ReadTimeout):
        client.post(server.url + path, json=body, headers={"x-api-key": KEY}, timeout=1.5)


def test_hanging_up_ends_the_work_on_all_pairs(slow: HttpServerProcess) -> None:
    """What was not begun is not computed, and others go on at once."""
    texts = [f"text {'word ' * 20}{number}" for number in range(1000)]
    hang_up_on(slow, "/score", {"text_1": texts, "text_2": texts})
    wait_until(lambda: load_of(slow)["requests_in_progress"] == 0, "the request to leave", timeout_s=10)
    wait_until(lambda: '"status": "499"' in slow.log.read_text(), "the call in the log")
    assert load_of(slow)["queued_tokens"] < 5000


def test_a_caller_who_hangs_up_pays_for_what_was_computed(slow: HttpServerProcess) -> None:
    """Or a limit of tokens would hold only for the patient."""
    documents = [f"text {'word ' * 20}{place}" for place in range(400)]
    hang_up_on(slow, "/rerank", {"query": "q", "documents": documents})

    def small() -> Any:
        return post(slow, "/rerank", {"query": "q", "documents": ["a"]}, headers={"x-api-key": KEY})

    # The batch that was on the device is charged when it leaves it.
    refused = small()
    while refused.status != 429:
        refused = small()
    assert "has used its 2,000 tokens a minute" in refused.json["message"]
