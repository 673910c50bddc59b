"""Each dialect's answer, key by key: what its own clients read."""

from typing import Any

import pytest

from tests.compat.http_server import HttpServerProcess, post

QUERY = "red fox"
TEXTS = ["a cat", "the red fox", "a fox"]
BEST_FIRST = [1, 2, 0]


def ask(server: HttpServerProcess, path: str, **body: Any) -> Any:
    answer = post(server, path, body)
    assert answer.status == 200, answer.text
    return answer.json


def shape(value: Any) -> Any:
    """The keys and types of an answer, lists by their first element."""
    if isinstance(value, dict):
        return {key: shape(each) for key, each in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


USAGE = {"prompt_tokens": "int", "total_tokens": "int"}
SUPERSET = {
    "id": "str",
    "object": "str",
    "created": "int",
    "model": "str",
    "results": [{"index": "int", "relevance_score": "float"}],
    "usage": USAGE,
    "meta": {
        "api_version": {"version": "str"},
        "billed_units": {"search_units": "float"},
        "tokens": {"input_tokens": "float", "output_tokens": "float"},
    },
}


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        (
            "/rerank",
            {"query": QUERY, "documents": TEXTS},
            {"ranked_results": [{"text": "str", "score": "float"}], **SUPERSET},
        ),
        ("/v1/rerank", {"query": QUERY, "documents": TEXTS, "model": "rerank-english-v3.0"}, SUPERSET),
        (
            "/v2/rerank",
            {"query": QUERY, "documents": TEXTS, "model": "m", "max_tokens_per_doc": None},
            SUPERSET,
        ),
        ("/v1/v2/rerank", {"query": QUERY, "documents": TEXTS, "model": "m"}, SUPERSET),
        (
            "/rerank",
            {"query": QUERY, "documents": TEXTS, "model": "m", "raw_scores": False, "return_documents": True},
            {
                "object": "str",
                "id": "str",
                "created": "int",
                "model": "str",
                "usage": USAGE,
                "results": [{"index": "int", "relevance_score": "float", "document": "str"}],
            },
        ),
        ("/rerank", {"query": QUERY, "texts": TEXTS}, [{"index": "int", "score": "float"}]),
        (
            "/rerank",
            {"query": QUERY, "texts": TEXTS, "return_text": True},
            [{"index": "int", "score": "float", "text": "str"}],
        ),
        (
            "/v1/rerank",
            {"query": QUERY, "documents": TEXTS, "model": "rerank-2", "top_k": None, "truncation": True},
            {
                "object": "str",
                "data": [{"index": "int", "relevance_score": "float"}],
                "model": "str",
                "usage": USAGE,
            },
        ),
        (
            "/v1/ranking",
            {"query": {"text": QUERY}, "passages": [{"text": text} for text in TEXTS], "model": "m"},
            {"rankings": [{"index": "int", "logit": "float"}], "usage": USAGE},
        ),
        (
            "/v1/reranking",
            {"query": QUERY, "input": TEXTS, "model": "m", "return_input": True},
            {
                "object": "str",
                "model": "str",
                "usage": USAGE,
                "data": [{"index": "int", "score": "float", "object": "str", "input": "str"}],
                "top_k": "int",
                "return_input": "bool",
            },
        ),
        (
            "/rerank",
            {"query": QUERY, "documents": TEXTS, "property": "content"},
            {"query": "str", "property": "str", "scores": [{"document": "str", "score": "float"}]},
        ),
        (
            "/score",
            {"text_1": QUERY, "text_2": TEXTS, "model": "m"},
            {
                "id": "str",
                "object": "str",
                "created": "int",
                "model": "str",
                "data": [{"index": "int", "score": "float", "object": "str"}],
                "usage": USAGE,
            },
        ),
    ],
)
def test_the_answer_has_the_dialects_own_keys(
    server: HttpServerProcess, path: str, body: dict[str, Any], expected: Any
) -> None:
    """Nothing is missing, and nothing comes that strict clients would refuse."""
    assert shape(ask(server, path, **body)) == expected


def test_every_dialect_gives_the_same_scores(server: HttpServerProcess) -> None:
    """One engine answers all: only names and order differ."""
    plain = ask(server, "/rerank", query=QUERY, documents=TEXTS)
    scores = {result["index"]: result["relevance_score"] for result in plain["results"]}
    assert list(scores) == BEST_FIRST
    assert [entry["text"] for entry in plain["ranked_results"]] == [TEXTS[i] for i in BEST_FIRST]
    tei = ask(server, "/rerank", query=QUERY, texts=TEXTS)
    assert {rank["index"]: rank["score"] for rank in tei} == scores
    voyage = ask(server, "/v1/rerank", query=QUERY, documents=TEXTS, top_k=3)
    assert [result["index"] for result in voyage["data"]] == BEST_FIRST
    weaviate = ask(server, "/rerank", query=QUERY, documents=TEXTS, property="p")
    assert [entry["score"] for entry in weaviate["scores"]] == [scores[i] for i in range(3)]
    scored = ask(server, "/v1/score", queries=QUERY, documents=TEXTS)
    assert [entry["score"] for entry in scored["data"]] == [scores[i] for i in range(3)]
    bread = ask(server, "/v1/reranking", query=QUERY, input=TEXTS, top_k=2)
    assert [entry["index"] for entry in bread["data"]] == BEST_FIRST[:2]


def test_score_pairs_texts_one_to_one(server: HttpServerProcess) -> None:
    """As many left as right are scored pair by pair, in the order of the request."""
    pairs = ask(server, "/score", text_1=["red", "blue", "red"], text_2=["red", "red", "the red"])
    one, two, three = (entry["score"] for entry in pairs["data"])
    assert [entry["index"] for entry in pairs["data"]] == [0, 1, 2]
    assert one > 0.9 > 0.1 > two
    assert three > 0.9


@pytest.mark.parametrize(("left", "right"), [("text_1", "text_2"), ("queries", "documents")])
def test_uneven_pairs_are_refused_in_the_callers_words(
    server: HttpServerProcess, left: str, right: str
) -> None:
    """The message names the fields that were sent."""
    refused = post(server, "/score", {left: ["a", "b"], right: ["c"]})
    assert (refused.status, refused.json["error"]["param"]) == (400, left)
    assert f"{left}: has 2 texts for 1 of {right}" in refused.json["message"]


def test_nims_logits_are_the_raw_scores(server: HttpServerProcess) -> None:
    """And raw_scores says the same elsewhere."""
    ranking = ask(server, "/rerank", query={"text": QUERY}, passages=[{"text": text} for text in TEXTS])
    raw = ask(server, "/rerank", query=QUERY, texts=TEXTS, raw_scores=True)
    plain = ask(server, "/rerank", query=QUERY, documents=TEXTS, raw_scores="true")
    logits = [entry["logit"] for entry in ranking["rankings"]]
    assert logits[0] > 1
    assert logits == [entry["score"] for entry in raw]
    assert logits == [entry["score"] for entry in plain["ranked_results"]]


@pytest.mark.parametrize(("top_n", "count"), [(None, 3), (0, 3), (1, 1), ("2", 2), (99, 3), (10**30, 3)])
def test_top_n_is_taken_as_it_is_meant(server: HttpServerProcess, top_n: Any, count: int) -> None:
    """Null, zero and more than there are mean all; a number in quotes is a number."""
    body = ask(server, "/v1/rerank", query=QUERY, documents=TEXTS, top_n=top_n, model="m")
    assert [result["index"] for result in body["results"]] == BEST_FIRST[:count]


def test_parsing_is_lenient_and_unknown_fields_are_ignored(server: HttpServerProcess) -> None:
    """Clients of many makes send more than they need, and types that are nearly right."""
    body = ask(
        server,
        "/v1/rerank",
        query=QUERY,
        documents=TEXTS,
        model=None,
        top_n=2.0,
        return_documents="true",
        max_chunks_per_doc=None,
        user="somebody",
        overfetch={"a": [1]},
    )
    assert [result["document"] for result in body["results"]] == [{"text": TEXTS[1]}, {"text": TEXTS[2]}]


def test_objects_are_ranked_by_their_fields_and_come_back_whole(server: HttpServerProcess) -> None:
    """`text` counts, or what rank_fields names; the caller's own fields are echoed."""
    documents = [{"title": "a cat", "text": "x"}, {"title": "the red fox", "text": "y", "id": 7}]
    body = ask(
        server,
        "/v1/rerank",
        query=QUERY,
        documents=documents,
        rank_fields=["title"],
        return_documents=True,
        model="m",
    )
    assert body["results"][0]["document"] == documents[1]
    refused = post(server, "/v1/rerank", {"query": QUERY, "documents": ["a", {"title": "b"}]})
    assert (refused.status, refused.json["error"]["param"]) == (400, "documents[1]")


def test_details_tell_what_was_cut_and_where_the_time_went(server: HttpServerProcess) -> None:
    """Only to who asks: strict clients get no field they don't know."""
    long = "word " * 300
    body = ask(server, "/rerank", query=QUERY, documents=["short", long], details=True, truncation="chunk")
    by_index = {result["index"]: result for result in body["results"]}
    assert by_index[0]["truncated"] is False
    assert len(by_index[1]["span"]) == 2
    assert set(body["timings"]) == {"queue_ms", "tokenise_ms", "compute_ms", "total_ms"}
    cut = ask(server, "/rerank", query=QUERY, documents=[long], details=True)
    assert cut["results"][0]["truncated"] is True


def test_what_may_not_be_cut_is_refused(server: HttpServerProcess) -> None:
    """Each dialect has its way to say so, and cuts by default."""
    long = ["word " * 300]
    assert len(ask(server, "/rerank", query=QUERY, texts=long)) == 1
    for body in (
        {"query": QUERY, "texts": long, "truncate": False},
        {"query": QUERY, "texts": long, "truncate": True, "truncation_direction": "Left"},
        {"query": QUERY, "documents": long, "truncation": False},
        {"query": QUERY, "documents": long, "truncation": "error"},
        {"query": {"text": QUERY}, "passages": [{"text": long[0]}], "truncate": "NONE"},
    ):
        answer = post(server, "/rerank", body)
        assert answer.status == 400, answer.text
        assert "longer than may be read" in answer.text


def test_nothing_to_rank_is_an_empty_answer(server: HttpServerProcess) -> None:
    """As it is over gRPC."""
    assert ask(server, "/rerank", query=QUERY, documents=[])["ranked_results"] == []
    assert ask(server, "/rerank", query=QUERY, texts=[]) == []


def test_usage_is_never_zero(server: HttpServerProcess) -> None:
    """Accounting that divides by it goes on when the cache has answered."""
    for _ in range(2):
        body = ask(server, "/v1/rerank", query="usage", documents=["counted"], model="m")
        assert body["usage"]["total_tokens"] > 0


def test_a_document_that_fails_alone_is_reported(server: HttpServerProcess) -> None:
    """The others are ranked; a header tells it in every dialect."""
    answer = post(server, "/rerank", {"query": QUERY, "documents": ["simulate_nan here", "fox"]})
    assert [result["index"] for result in answer.json["results"]] == [1]
    assert [failure["index"] for failure in answer.json["failures"]] == [0]
    assert answer.headers["x-failed-documents"] == "0"
