"""HTTP itself: errors, headers, limits, keys, deadlines, drain."""

import gzip
import json
import signal
import socket
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from tests.compat.http_server import Answer, HttpServerProcess, post
from tests.support.calls import failure_of, request_of
from tests.support.waiting import wait_until

PLAIN = {"query": "red fox", "documents": ["a cat", "the red fox"]}
KEY = "search-key-0123456789"
MIB = 1024 * 1024


def get(server: HttpServerProcess, path: str, **headers: str) -> httpx.Response:
    return httpx.get(server.url + path, headers=headers, timeout=20, trust_env=False)


def said(answer: Answer) -> str:
    """The message, which every reader of errors must find."""
    body = answer.json
    assert body["message"] == body["detail"] == body["error"]["message"]
    assert body["error"]["code"] == answer.status
    return str(body["message"])


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({"query": " ", "documents": ["a"]}, "query", "must not be blank"),
        ({"documents": ["a"]}, "query", "is missing"),
        ({"query": "q"}, "documents", "is missing"),
        ({"query": 3, "documents": ["a"]}, "query", "expected a string"),
        ({"query": "q", "documents": ["a", 5]}, "documents[1]", "got a whole number"),
        ({"query": "q", "documents": "a"}, "documents", "expected a list"),
        ({"query": "q", "documents": ["a"], "top_n": -1}, "top_n", ">= 0"),
        ({"query": "q", "documents": ["a"], "instruction": "find"}, "instruction", "takes none"),
        (["q"], "body", "expected an object"),
        (b"{not json", "body", "is not valid JSON"),
        (b'{"query": "\xff"}', "body", "is not valid JSON"),
        (b'{"x": ' + b"[" * 5_000, "body", "nested too deeply"),
        (b"", "body", "is empty"),
    ],
)
def test_a_wrong_request_is_400_and_names_the_field(
    server: HttpServerProcess, body: Any, field: str, words: str
) -> None:
    """For people in the message, for programs in `error.param`."""
    answer = post(server, "/rerank", body)
    assert answer.status == 400
    assert words in said(answer)
    assert answer.json["error"]["param"] == field


def test_tei_and_weaviate_get_errors_in_their_own_shape(server: HttpServerProcess) -> None:
    """TEI's clients read a string at `error`."""
    tei = post(server, "/rerank", {"query": "", "texts": ["a"]})
    assert (tei.status, tei.json) == (
        400,
        {"error": "query: must not be blank", "error_type": "Validation"},
    )
    weaviate = post(server, "/rerank", {"query": "", "documents": ["a"], "property": "p"})
    assert weaviate.json == {"error": "query: must not be blank"}


def test_too_much_is_413(server: HttpServerProcess) -> None:
    """Too many documents, and too many bytes whether announced, counted or decompressed."""
    many = post(server, "/rerank", {"query": "q", "documents": ["a"] * 101})
    assert (many.status, many.json["error"]["param"]) == (413, "documents")
    large = json.dumps({"query": "q", "documents": ["x" * 2 * MIB]}).encode()
    assert post(server, "/rerank", large).status == 413
    with httpx.Client(trust_env=False) as client:
        chunked = client.post(server.url + "/rerank", content=iter([large[:MIB], large[MIB:]]))
    assert chunked.status_code == 413
    bomb = post(server, "/rerank", gzip.compress(large), headers={"content-encoding": "gzip"})
    assert bomb.status == 413
    assert "decompressed" in said(bomb)


def test_an_announced_size_is_refused_before_it_is_sent(server: HttpServerProcess) -> None:
    """Nobody uploads a gigabyte to be told that it is too much."""
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=10) as connection:
        head = "POST /rerank HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000\r\n\r\n"
        connection.sendall(head.encode())
        assert b" 413 " in connection.recv(1000).split(b"\r\n")[0]


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_bodies_may_be_compressed(server: HttpServerProcess, encoding: str, pack: Any) -> None:
    """Both ways: long answers are compressed for who takes it."""
    documents = [f"document {number}" for number in range(100)]
    body = pack(
        json.dumps({"query": "document 7", "documents": documents, "return_documents": True}).encode()
    )
    headers = {"content-encoding": encoding, "accept-encoding": "gzip"}
    answer = post(server, "/rerank", body, headers=headers)
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.json["results"][0]["index"] == 7
    plain = post(server, "/rerank", body, headers={**headers, "accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.json["results"] == answer.json["results"]


def test_a_body_that_is_not_what_its_header_says_is_refused(server: HttpServerProcess) -> None:
    """Not gzip, gzip that ends too early, and an encoding nobody knows."""
    packed = gzip.compress(json.dumps(PLAIN).encode())
    for body, encoding, status in (
        (b"plain", "gzip", 400),
        (packed[:-9], "gzip", 400),
        (packed, "br", 415),
    ):
        assert post(server, "/rerank", body, headers={"content-encoding": encoding}).status == status


def test_requests_have_ids_and_answers_a_name(server: HttpServerProcess) -> None:
    """The caller's id comes back and is in the log; one that is not sane is replaced."""
    answer = post(server, "/rerank", PLAIN, headers={"x-request-id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    assert answer.headers["x-served-by"] == "compat"
    wait_until(lambda: '"request_id": "mine-1"' in server.log.read_text(), "the call in the log")
    replaced = post(server, "/rerank", {"query": ""}, headers={"x-request-id": "no/t sane"})
    assert replaced.headers["x-request-id"] not in ("", "no/t sane")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"x-request-timeout-ms": "5000"}, 200),
        ({"grpc-timeout": "5S"}, 200),
        ({"x-request-timeout-ms": "soon"}, 400),
        ({"grpc-timeout": "5 s"}, 400),
    ],
)
def test_deadlines_come_by_header(server: HttpServerProcess, headers: dict[str, str], status: int) -> None:
    """Ours in milliseconds, or gRPC's own; nonsense is named."""
    assert post(server, "/rerank", PLAIN, headers=headers).status == status


@pytest.mark.parametrize("path", ["/health", "/ping", "/.well-known/ready", "/.well-known/live"])
def test_health_is_200_while_serving(server: HttpServerProcess, path: str) -> None:
    """For balancers, orchestrators and Weaviate."""
    assert get(server, path).status_code == 200


def test_the_model_is_described_for_every_kind_of_client(server: HttpServerProcess) -> None:
    """TEI's /info, OpenAI's /v1/models and Weaviate's /meta."""
    info = get(server, "/info").json()
    assert info["model_id"] == "simulated"
    assert set(info["model_type"]["reranker"]) == {"id2label", "label2id"}
    assert info["server"]["state"] == "SERVING"
    assert [model["id"] for model in get(server, "/v1/models").json()["data"]] == ["simulated"]
    assert get(server, "/meta").json()["model"] == "simulated"


def test_metrics_are_those_of_the_engine(server: HttpServerProcess) -> None:
    """In Prometheus' text format."""
    post(server, "/rerank", {"query": "metrics", "documents": ["counted"]})
    answer = get(server, "/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert "rerank_computed_pairs_total" in answer.text


def test_unknown_paths_and_methods_are_json_too(server: HttpServerProcess) -> None:
    """404 and 405 have the body of all errors."""
    assert get(server, "/nowhere").json()["error"]["code"] == 404
    wrong = httpx.put(server.url + "/rerank", trust_env=False)
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert wrong.json()["error"]["reason"] == "METHOD_NOT_ALLOWED"


def test_docs_load_nothing_from_elsewhere(server: HttpServerProcess) -> None:
    """The page and all that it asks for come from this server."""
    page = get(server, "/docs")
    assert "//" not in page.text.replace("<!doctype html>", "")
    for asset in ("docs/swagger-ui.css", "docs/swagger-ui-bundle.js", "openapi.json"):
        assert asset in page.text
        assert get(server, f"/{asset}").status_code == 200
    assert get(server, "/docs/..%2f..%2fsecret").status_code == 404


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[HttpServerProcess]:
    """A server on which a thousand words take a second, and a batch two."""
    options = (
        "--simulated-tokens-per-second",
        "1000",
        "--max-queued-tokens",
        "2000",
        "--pair-cache-mib",
        "0",
    )
    with HttpServerProcess(tmp_path, *options) as process:
        yield process


def load_of(server: HttpServerProcess) -> Any:
    return get(server, "/info").json()["server"]


def computed_tokens(server: HttpServerProcess) -> float:
    lines = get(server, "/metrics").text.splitlines()
    return sum(float(line.split()[1]) for line in lines if line.startswith("rerank_computed_tokens_total "))


def in_progress(server: HttpServerProcess) -> int:
    return int(load_of(server)["requests_in_progress"])


def hang_up_after(server: HttpServerProcess, documents: list[str], seconds: float) -> None:
    with pytest.raises(httpx.ReadTimeout):
        post(server, "/rerank", {"query": "q", "documents": documents}, timeout_s=seconds)


def test_overload_is_429_with_a_time_to_come_back(slow: HttpServerProcess) -> None:
    """For what there is no room, or no time, is refused before any compute, in the dialect's own shape."""
    many = [f"{'word ' * 50}{number}" for number in range(200)]
    # Each holds a quarter of the queue, and large ones together three.
    hogs = [threading.Thread(target=hang_up_after, args=(slow, many, 8)) for _ in range(3)]
    for hog in hogs:
        hog.start()
    wait_until(lambda: load_of(slow)["queued_tokens"] >= 1500, "the queue to fill")
    full = post(slow, "/v1/rerank", {"query": "q", "documents": many, "model": "m"})
    assert full.status == 429
    assert int(full.headers["retry-after"]) >= 1
    assert full.json["error"]["type"] == "rate_limit_error"
    tei = post(slow, "/rerank", {"query": "q", "texts": many})
    assert (tei.status, tei.json["error_type"]) == (429, "Overloaded")
    hurried = post(slow, "/rerank", PLAIN, headers={"x-request-timeout-ms": "1"})
    assert hurried.status in (429, 504)
    for hog in hogs:
        hog.join(20)


def test_a_caller_who_hangs_up_is_worked_for_no_longer(slow: HttpServerProcess) -> None:
    """What waited in the queue is dropped, and the log says 499."""
    hang_up_after(slow, [f"{'word ' * 20}{number}" for number in range(400)], 0.5)
    wait_until(lambda: in_progress(slow) == 0, "the request to leave")
    assert computed_tokens(slow) < 5000
    assert '"status": "499"' in slow.log.read_text()


def test_a_drain_finishes_what_was_accepted_and_says_503(tmp_path: Path) -> None:
    """Health flips first; new requests are answered during the delay; the answer under way arrives."""
    options = ("--simulated-tokens-per-second", "1000", "--drain-delay", "1")
    with HttpServerProcess(tmp_path, *options) as server:
        answers: list[Answer] = []
        body = {"query": "q", "documents": [f"{'word ' * 50}{number}" for number in range(60)]}
        caller = threading.Thread(target=lambda: answers.append(post(server, "/rerank", body)))
        caller.start()
        wait_until(lambda: in_progress(server) == 1, "the call to be under way")
        server.signal(signal.SIGTERM)
        wait_until(lambda: get(server, "/health").status_code == 503, "health to flip")
        caller.join(20)
        assert len(answers[0].json["results"]) == 60
        assert server.process.wait(15) == 0


def test_keys_and_their_limits_are_shared_with_grpc(tmp_path: Path) -> None:
    """One place among a key's queries, whichever protocol holds it; health and pages need no key."""
    keys = tmp_path / "keys"
    keys.write_text(f"search {KEY} concurrency=1\n")
    options = ("--api-keys-file", str(keys), "--simulated-tokens-per-second", "500")
    with HttpServerProcess(tmp_path, *options) as server, grpc.insecure_channel(server.address) as channel:
        assert get(server, "/health").status_code == 200
        assert get(server, "/").status_code == 200
        for path in ("/info", "/v1/models", "/metrics"):
            assert get(server, path).status_code == 401
        refused = post(server, "/rerank", PLAIN)
        assert (refused.status, refused.json["error"]["type"]) == (401, "authentication_error")
        bearer = {"authorization": f"Bearer {KEY}"}
        assert post(server, "/rerank", PLAIN, headers=bearer).status == 200
        assert post(server, "/rerank", PLAIN, headers={"x-api-key": KEY}).status == 200
        body = {"query": "q", "documents": [f"{'word ' * 50}{number}" for number in range(30)]}
        caller = threading.Thread(target=lambda: post(server, "/rerank", body, headers=bearer))
        caller.start()
        wait_until(
            lambda: get(server, "/info", **bearer).json()["server"]["requests_in_progress"] == 1,
            "the call to be under way",
        )
        failure = failure_of(channel, request_of("a"), metadata=[("authorization", f"Bearer {KEY}")])
        assert failure.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        caller.join(20)


def test_models_by_other_names_are_refused_when_asked_to(tmp_path: Path) -> None:
    """By default any name is accepted, since many clients insist on one."""
    with HttpServerProcess(tmp_path, "--http-check-model", "--http-return-documents") as server:
        other = post(server, "/v1/rerank", {**PLAIN, "model": "rerank-v3.5"})
        assert (other.status, other.json["error"]["reason"]) == (404, "MODEL_NOT_SERVED")
        own = post(server, "/v1/rerank", {**PLAIN, "model": "simulated"})
        assert own.json["results"][0]["document"] == {"text": "the red fox"}


def test_a_taken_http_port_is_one_clear_line(server: HttpServerProcess, tmp_path: Path) -> None:
    """The server says which option to change, and does not start."""
    second = HttpServerProcess(tmp_path, "--http-port", str(server.http_port))
    second.start()
    assert second.process.wait(30) == 2
    assert f"error: --http-port {server.http_port}" in second.log.read_text()
