"""What a server sends, by mistake or malice, costs its client a bounded amount."""

import itertools
from collections.abc import Iterator

import grpc
import pytest
from rerank import InvalidRequestError, ProtocolError, Query, RerankClient, RerankOptions
from rerank._plan import plan
from rerank._sharding import ShardLimits
from rerank.v1 import rerank_pb2 as wire

from tests.sdk.scoring_server import ScoringServer, unscripted_answer
from tests.sdk.twins import Connect, Twin
from tests.support.waiting import wait_until

Requests = Iterator[wire.RerankStreamRequest]
Responses = Iterator[wire.RerankStreamResponse]


def answered(item: wire.RerankStreamRequest) -> wire.RerankStreamResponse:
    return wire.RerankStreamResponse(id=item.id, response=unscripted_answer(item.request))


def flood(requests: Requests) -> Responses:
    """Answer the first query, and go on answering what nobody asked."""
    yield answered(next(requests))
    for number in itertools.count(100):
        yield wire.RerankStreamResponse(id=f"{number}.0", response=wire.RerankResponse(model="x" * 1000))


def test_an_answer_larger_than_any_can_be_is_not_read(client: Twin, server: ScoringServer) -> None:
    """A million results for two documents fail the call before they are in memory, and only once."""

    def endless(request: wire.RerankRequest, context: grpc.ServicerContext) -> wire.RerankResponse:
        return wire.RerankResponse.FromString(b"\x0a\x00" * 1_000_000)

    server.script = [endless]
    with pytest.raises(ProtocolError, match="larger than max"):
        client.rerank("query", ["a", "b"])
    assert len(server.seen) == 1


@pytest.mark.parametrize("documents", [1, 1000])
def test_the_largest_answer_is_read(connect: Connect, server: ScoringServer, documents: int) -> None:
    """Documents that all fail with a reason as long as a server's are no such answer."""

    def all_fail(request: wire.RerankRequest, context: grpc.ServicerContext) -> wire.RerankResponse:
        failures = [
            wire.FailedDocument(index=index, reason="x" * 400) for index in range(len(request.documents))
        ]
        return wire.RerankResponse(failures=failures, model="m" * 400, fingerprint="f" * 32)

    server.script = [all_fail]
    client = connect(server.target, max_request_documents=1000)
    assert len(client.rerank("query", ["a"] * documents).failures) == documents


def test_a_document_fails_once(client: Twin, server: ScoringServer) -> None:
    """An answer that repeats one document's failure is refused."""

    def repeated(request: wire.RerankRequest, context: grpc.ServicerContext) -> wire.RerankResponse:
        response = wire.RerankResponse(results=[wire.RankedDocument(index=0)])
        response.failures.extend([wire.FailedDocument(index=1, reason="NaN")] * 1000)
        return response

    server.script = [repeated]
    with pytest.raises(ProtocolError, match="1000 failures"):
        client.rerank("query", ["a", "b"])


def test_long_words_of_a_server_are_cut(client: Twin, server: ScoringServer) -> None:
    """An error on a stream may be as long as an answer; what is raised is not."""
    told = wire.Error(code=3, reason="R" * 100_000, message="m" * 500_000, field="f" * 100_000)
    server.stream_script = [
        lambda requests: (wire.RerankStreamResponse(id=item.id, error=told) for item in requests)
    ]
    [(_, error)] = client.rerank_many([Query(1, "query", ["a"])])
    assert isinstance(error, InvalidRequestError)
    assert max(len(error.message), len(error.reason), len(error.field)) <= 2000


def test_a_field_that_names_no_document_is_left_as_it_is() -> None:
    """A position with more digits than Python reads is no reason to fail differently."""
    parts = plan("q", ["a", "b"], text=None, options=RerankOptions(), limits=ShardLimits(max_documents=1))
    error = InvalidRequestError("no", field=f"documents[{'9' * 5000}]")
    assert parts.locate(1, error) is error


def test_a_flood_of_answers_ends_the_call(client: Twin, server: ScoringServer) -> None:
    """A server that answers what nobody asked is told apart from one that answers late."""
    server.stream_script = [flood] * 9
    outcomes = client.rerank_many([Query(number, "query", ["a"]) for number in range(2)])
    with pytest.raises(ProtocolError, match="never asked"):
        list(outcomes)
    assert server.streams_opened == 1


def test_a_flood_is_not_kept_for_a_slow_caller(server: ScoringServer) -> None:
    """Between two outcomes the client reads no more than it asked for, however long that takes."""
    server.stream_script = [flood]
    with RerankClient(server.target) as client:
        outcomes = client.rerank_many([Query(number, "query", ["a"]) for number in range(2)])
        next(outcomes)
        wait_until(lambda: server.streams_ended == 1, "the client to end the stream by itself")
        with pytest.raises(ProtocolError):
            next(outcomes)
