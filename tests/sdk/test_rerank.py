"""One call of rerank, as both clients make it."""

from dataclasses import dataclass

import grpc
import pytest
from rerank import (
    DeadlineExceededError,
    FailedDocument,
    InvalidRequestError,
    ModelNotServedError,
    Priority,
    ProtocolError,
    Ranking,
    Span,
    Truncation,
)
from rerank.v1 import rerank_pb2 as wire

from tests.sdk.scoring_server import Hang, ScoringServer, logit_of, unscripted_answer
from tests.sdk.twins import Connect, Twin

DOCUMENTS = [f"document {number}" for number in range(20)]


@dataclass(frozen=True)
class Article:
    id: int
    body: str


def test_documents_come_back_best_first(client: Twin) -> None:
    """A ranking holds every document once, in the order of its logit, ties as in the request."""
    ranking = client.rerank("query", DOCUMENTS)
    expected = sorted(range(20), key=lambda index: -logit_of("query", DOCUMENTS[index]))
    assert [ranked.index for ranked in ranking] == expected
    assert ranking.documents == tuple(DOCUMENTS[index] for index in expected)
    assert all(0 <= ranked.score <= 1 for ranked in ranking)


def test_own_objects_come_back_themselves(client: Twin) -> None:
    """With text=, a ranking holds the caller's very objects."""
    articles = [Article(number, f"body {number}") for number in range(5)]
    ranking = client.rerank("query", articles, text=lambda article: article.body)
    for ranked in ranking:
        assert ranked.document is articles[ranked.index]
        assert ranked.tokens == len(ranked.document.body)


def test_documents_may_come_from_a_generator(client: Twin) -> None:
    """Any iterable of documents is read once."""
    assert len(client.rerank("query", (str(number) for number in range(5)))) == 5


def test_every_option_travels(client: Twin, server: ScoringServer) -> None:
    """Each option of the call arrives in its field of the request."""
    client.rerank(
        "query",
        ["a", "b"],
        top_n=1,
        raw_scores=True,
        truncation="chunk",
        max_tokens_per_document=7,
        model="m",
        priority=Priority.BATCH,
        instruction="task",
    )
    assert server.seen[0].request == wire.RerankRequest(
        query="query",
        documents=["a", "b"],
        top_n=1,
        raw_scores=True,
        truncation=wire.TRUNCATION_CHUNK,
        max_tokens_per_document=7,
        model="m",
        priority=wire.PRIORITY_BATCH,
        instruction="task",
    )


def test_defaults_leave_everything_to_the_server(client: Twin, server: ScoringServer) -> None:
    """Without options, a request holds the query and the documents only."""
    client.rerank("query", ["a"])
    assert server.seen[0].request == wire.RerankRequest(query="query", documents=["a"])


def test_no_documents_need_no_server(connect: Connect) -> None:
    """Without documents the ranking is empty, and nothing is sent."""
    nothing: list[str] = []
    ranking = connect("localhost:1").rerank("query", nothing)
    assert len(ranking) == 0
    assert ranking.documents == ()
    assert ranking.request_id


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"query": " \n"}, "query"),
        ({"query": None}, "query"),
        ({"documents": "one string"}, "documents"),
        ({"documents": ["fine", None]}, "documents[1]"),
        ({"documents": ["fine", {"text": "a"}]}, "documents[1]"),
        ({"documents": ["half a pair \ud800"]}, "documents[0]"),
        ({"query": "half a pair \ud800"}, "query"),
        ({"model": "\udfff"}, "model"),
        ({"top_n": -1}, "top_n"),
        ({"top_n": 1.5}, "top_n"),
        ({"max_tokens_per_document": True}, "max_tokens_per_document"),
        ({"truncation": "middle"}, "truncation"),
        ({"priority": ""}, "priority"),
        ({"request_id": "with space"}, "request_id"),
        ({"request_id": "line\n"}, "request_id"),
        ({"request_id": "x" * 129}, "request_id"),
    ],
)
def test_what_is_wrong_is_named_before_anything_is_sent(
    connect: Connect, arguments: dict[str, object], field: str
) -> None:
    """A request that can't be right fails at once, naming the field."""
    call: dict[str, object] = {"query": "query", "documents": ["a"]} | arguments
    with pytest.raises(InvalidRequestError, match=field.replace("[", r"\[")) as caught:
        connect("localhost:1").rerank(**call)  # type: ignore[arg-type]
    assert caught.value.field == field
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT


def test_blank_query_is_refused_even_without_documents(client: Twin) -> None:
    """An empty list of documents doesn't hide a blank query."""
    with pytest.raises(InvalidRequestError, match="blank"):
        client.rerank("", [])


@pytest.mark.parametrize("top_n", [None, 0, 20, 21, 2**40])
def test_top_n_without_effect(client: Twin, top_n: int | None) -> None:
    """No top_n, 0, and more than there are all return everything."""
    assert len(client.rerank("query", DOCUMENTS, top_n=top_n)) == 20


def test_the_request_id_is_the_callers(client: Twin, server: ScoringServer) -> None:
    """A request id that is passed in travels and comes back."""
    assert client.rerank("query", ["a"], request_id="order-66.b_1").request_id == "order-66.b_1"
    assert server.seen[0].metadata["x-request-id"] == "order-66.b_1"


def test_a_request_id_is_made_up_for_each_call(client: Twin, server: ScoringServer) -> None:
    """Without a request id every call gets its own, and the result holds the one that was sent."""
    rankings = [client.rerank("query", ["a"]) for _ in range(3)]
    assert len({ranking.request_id for ranking in rankings}) == 3
    assert [seen.metadata["x-request-id"] for seen in server.seen] == [
        ranking.request_id for ranking in rankings
    ]


def test_a_ranking_says_who_scored_and_what_it_cost(client: Twin) -> None:
    """Model, server, usage and timings of the answer are in the ranking."""
    ranking = client.rerank("query", ["ab", "c"])
    assert ranking.model == "scoring-server"
    assert ranking.servers == ("gpu-0",)
    assert (ranking.usage.computed_pairs, ranking.usage.computed_tokens) == (2, 3)
    assert ranking.usage.cached_pairs == 1
    assert ranking.timings.compute_s == 0.002


def test_documents_that_failed_are_listed(client: Twin) -> None:
    """A document that the model could not score is in failures, and the others are ranked."""
    ranking = client.rerank("query", ["a", "unscorable", "b"])
    assert ranking.failures == (FailedDocument(1, "NaN", "unscorable"),)
    assert {ranked.document for ranked in ranking} == {"a", "b"}


def test_the_winning_span_is_read(client: Twin, server: ScoringServer) -> None:
    """With truncation "chunk" the result says which part of the document won."""

    def answer(request: wire.RerankRequest, context: grpc.ServicerContext) -> wire.RerankResponse:
        response = unscripted_answer(request)
        response.results[0].winning_span.start = 0
        response.results[0].winning_span.end = 3
        return response

    server.script = [answer]
    assert client.rerank("query", ["abcdef"], truncation=Truncation.CHUNK)[0].span == Span(0, 3)


def test_the_default_deadline_is_thirty_seconds(client: Twin, server: ScoringServer) -> None:
    """Every call has a deadline, also if nobody thought of one."""
    client.rerank("query", ["a"])
    # gRPC counts deadlines by the wall clock; one that was set meanwhile once left 30.1 s of 30.
    assert 20 < server.seen[0].time_remaining_s < 31


def test_timeouts_can_be_set_for_client_and_call(connect: Connect, server: ScoringServer) -> None:
    """The call's timeout_s wins over the client's, which wins over the default."""
    client = connect(server.target, timeout_s=300)
    client.rerank("query", ["a"])
    client.rerank("query", ["a"], timeout_s=3000)
    # gRPC rounds long deadlines up a little.
    assert 200 < server.seen[0].time_remaining_s < 310
    assert 2000 < server.seen[1].time_remaining_s < 3100


@pytest.mark.parametrize("timeout_s", [0, -1, float("inf"), float("nan"), "3"])
def test_a_timeout_must_be_finite(client: Twin, timeout_s: object) -> None:
    """There is no way to ask for a wait without end."""
    with pytest.raises(ValueError, match="timeout_s"):
        client.rerank("query", ["a"], timeout_s=timeout_s)


def test_a_deadline_that_passes_is_a_timeout(client: Twin, server: ScoringServer) -> None:
    """A server that doesn't answer in time gives a TimeoutError that names the time."""

    server.script = [Hang()]
    with pytest.raises(TimeoutError, match=r"within 0\.2 s") as caught:
        client.rerank("query", ["a"], timeout_s=0.2)
    assert isinstance(caught.value, DeadlineExceededError)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize("indices", [[0], [0, 0], [0, 2], [0, 1, 2]])
def test_an_answer_that_loses_documents_is_refused(
    client: Twin, server: ScoringServer, indices: list[int]
) -> None:
    """An answer must account for each document exactly once."""

    def answer(request: wire.RerankRequest, context: grpc.ServicerContext) -> wire.RerankResponse:
        return wire.RerankResponse(results=[wire.RankedDocument(index=index) for index in indices])

    server.script = [answer]
    with pytest.raises(ProtocolError, match="account for each document"):
        client.rerank("query", ["a", "b"])


def test_headers_of_ones_own_travel(connect: Connect, server: ScoringServer) -> None:
    """Metadata may be fixed or made anew for each call, for tracing."""
    numbers = iter(range(10))
    connect(server.target, metadata={"X-Team": "search"}).rerank("query", ["a"])
    client = connect(server.target, metadata=lambda: {"traceparent": f"00-{next(numbers)}"})
    client.rerank("query", ["a"])
    client.rerank("query", ["a"])
    assert server.seen[0].metadata["x-team"] == "search"
    assert [seen.metadata["traceparent"] for seen in server.seen[1:]] == ["00-0", "00-1"]


@pytest.mark.parametrize("headers", [{"trace parent": "a"}, {"a": "line\n"}, {"a": "é"}, {"a-bin": "a"}])
def test_headers_that_cannot_travel_are_refused(connect: Connect, headers: dict[str, str]) -> None:
    """A header that HTTP/2 can't carry is named, without being sent."""
    with pytest.raises(ValueError, match="metadata"):
        connect("localhost:1", metadata=headers).rerank("query", ["a"])


def test_get_model_describes_the_server(client: Twin) -> None:
    """get_model returns the model's id, its limits and the range of scores."""
    info = client.get_model()
    assert (info.id, info.revision, info.max_tokens) == ("scoring-server", "abc", 512)
    assert info.limits.max_documents == 1000
    assert (info.score_range.minimum, info.score_range.maximum) == (0.0, 1.0)
    assert (info.server, info.fingerprint) == ("gpu-0", "f00d")


def test_raw_grpc_options_win(connect: Connect, server: ScoringServer) -> None:
    """A raw channel option replaces the package's own."""
    client = connect(server.target, grpc_options=[("grpc.primary_user_agent", "mine/1")])
    client.rerank("query", ["a"])
    connect(server.target).rerank("query", ["a"])
    assert str(server.seen[0].metadata["user-agent"]).startswith("mine/1")
    assert str(server.seen[1].metadata["user-agent"]).startswith("rerank-sdk/")


def test_rankings_of_the_same_call_are_equal(client: Twin) -> None:
    """Rankings are values: equal if everything in them is, and hashable."""
    first, second = (client.rerank("query", DOCUMENTS, request_id="same") for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)
    assert first != client.rerank("query", DOCUMENTS, request_id="other")
    assert isinstance(first, Ranking)


def test_model_not_served_is_told(client: Twin, server: ScoringServer) -> None:
    """Different models that answer parts of one call are refused, since their scores don't compare."""

    def other_model(request: wire.RerankRequest, context: grpc.ServicerContext) -> wire.RerankResponse:
        return unscripted_answer(request, model="another")

    server.script = [other_model]
    with pytest.raises(ModelNotServedError, match="another on gpu-0; scoring-server on gpu-0") as caught:
        client.rerank("query", [str(number) for number in range(200)])
    assert caught.value.reason == "MODELS_DIFFER"


def test_weights_that_differ_are_told_although_their_name_is_one(client: Twin, server: ScoringServer) -> None:
    """Parts of one call by servers of different fingerprints are refused, and the servers named."""

    def quantised_elsewhere(
        request: wire.RerankRequest, context: grpc.ServicerContext
    ) -> wire.RerankResponse:
        server.name = "gpu-1"  # the next part's name; this one's goes out with it
        return unscripted_answer(request, fingerprint="bbbb" * 8)

    server.script = [lambda request, _: unscripted_answer(request, fingerprint="aaaa" * 8)]
    client.rerank("query", ["one part is always of one model"])
    server.script = [
        quantised_elsewhere,
        lambda request, _: unscripted_answer(request, fingerprint="aaaa" * 8),
    ]
    with pytest.raises(ModelNotServedError, match="scoring-server aaaaaaaaaaaa on gpu") as caught:
        client.rerank("query", [str(number) for number in range(200)])
    assert "scoring-server bbbbbbbbbbbb on gpu-1" in caught.value.message
    assert caught.value.reason == "MODELS_DIFFER"


def test_servers_without_fingerprints_are_compared_by_name(client: Twin, server: ScoringServer) -> None:
    """During the roll-out of fingerprints, a server that sends none still answers parts of a call."""
    server.script = [lambda request, _: unscripted_answer(request, fingerprint="aaaa" * 8)]
    assert len(client.rerank("query", [str(number) for number in range(200)])) == 200
