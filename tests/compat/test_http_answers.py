"""Answers: whole, compressed for who takes it, short about what was sent, and answered to HEAD."""

import json
from pathlib import Path

import httpx
import msgspec
import pytest

from server.transport.http.encodings import accepts_gzip
from tests.compat.http_server import HttpServerProcess, post
from tests.support.waiting import wait_until

MIB = 1024 * 1024


def test_a_large_answer_arrives_whole(tmp_path: Path) -> None:
    """It leaves in pieces, compressed or not."""
    documents = [f'{number} \u0001\n"é😀 {"x" * 900}' for number in range(2000)]
    body = json.dumps({"query": "q", "documents": documents, "return_documents": True}).encode()
    with HttpServerProcess(tmp_path, "--simulated-tokens-per-second", "100000000") as server:
        for encoding in ("gzip", "identity"):
            answer = post(server, "/rerank", body, headers={"accept-encoding": encoding})
            assert ("content-encoding" in answer.headers) == (encoding == "gzip")
            returned = {result["index"]: result["document"]["text"] for result in answer.json["results"]}
            assert [returned[index] for index in range(2000)] == documents
            assert len(answer.json["ranked_results"]) == 2000


def test_what_is_quoted_of_a_request_is_short(tmp_path: Path) -> None:
    """Neither messages nor the log repeat a megabyte of somebody's word."""
    long = "m" * MIB
    with HttpServerProcess(tmp_path, "--http-check-model") as server:
        for path, body, headers in (
            ("/v1/rerank", {"query": "q", "documents": ["a"], "model": long}, {}),
            ("/v1/rerank", {"query": "q", "documents": ["a"], "truncation": long}, {}),
            ("/v1/rerank", {"query": "q", "documents": ["a"], "top_n": long}, {}),
            ("/v1/rerank", {"query": "q", "documents": ["a"]}, {"content-encoding": "m" * 20_000}),
            ("/" + "m" * 20_000, {}, {}),
        ):
            answer = post(server, path, body, headers=headers)
            assert 400 <= answer.status < 500
            assert len(answer.text) < 4000
        wrong = httpx.put(server.url + "/" + "m" * 20_000, trust_env=False)
        assert len(wrong.text) < 4000
        wait_until(lambda: '"PUT ' in server.log.read_text(), "the last call in the log")
        assert max(map(len, server.log.read_text().splitlines())) < 2000
        assert "leave model empty" in server.log.read_text()


@pytest.mark.parametrize(
    ("header", "taken"),
    [
        ("gzip", True),
        ("br, GZIP;q=0.5", True),
        ("*", True),
        ("gzip;q=0", False),
        ("gzip; q=0.000, identity", False),
        ("*;q=0", False),
        ("*, gzip;q=0", False),
        ("br;q=1.0, gzip; q=0.2, *;q=0", True),
        ("deflate", False),
        ("gzip;q=nonsense", False),
        ("", False),
    ],
)
def test_gzip_is_for_who_takes_it(header: str, taken: bool) -> None:
    """A weight of 0 says no, as RFC 9110 has it."""
    assert accepts_gzip(header) is taken


def test_answers_respect_a_weight_of_zero(server: HttpServerProcess) -> None:
    """The header as clients send it, over the wire."""
    body = {"query": "q", "documents": [f"{n} {'x' * 200}" for n in range(100)], "return_documents": True}
    for header, encoding in (("gzip;q=0", None), ("gzip", "gzip")):
        answer = post(server, "/rerank", body, headers={"accept-encoding": header})
        assert answer.headers.get("content-encoding") == encoding
        assert msgspec.json.decode(answer.text)["object"] == "rerank"


@pytest.mark.parametrize(
    "path", ["/health", "/info", "/v1/models", "/metrics", "/", "/docs", "/openapi.json"]
)
def test_head_is_answered_wherever_get_is(server: HttpServerProcess, path: str) -> None:
    """As balancers ask: the same status and length, and no body."""
    head = httpx.head(server.url + path, trust_env=False)
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) > 0
