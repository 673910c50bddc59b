"""rerank_many: many queries on one stream, which outlives what breaks."""

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any, TypeVar

import grpc
import pytest
from rerank import (
    AsyncRerankClient,
    AuthenticationError,
    DeadlineExceededError,
    InvalidRequestError,
    OverloadedError,
    Query,
    Ranking,
    RerankClient,
    RerankError,
    UnavailableError,
)
from rerank.v1 import rerank_pb2 as wire

from tests.sdk.scoring_server import Fail, ScoringServer, unscripted_answer
from tests.sdk.twins import Connect, Twin
from tests.support.waiting import wait_until

Requests = Iterator[wire.RerankStreamRequest]
Responses = Iterator[wire.RerankStreamResponse]

DOCUMENTS = ["a", "b", "c"]

T = TypeVar("T")


def as_ranking(outcome: Ranking[T] | RerankError) -> Ranking[T]:
    if isinstance(outcome, RerankError):
        raise outcome
    return outcome


def queries(count: int) -> list[Query[int, str]]:
    return [Query(number, f"query {number}", DOCUMENTS) for number in range(count)]


def answered(item: wire.RerankStreamRequest) -> wire.RerankStreamResponse:
    return wire.RerankStreamResponse(id=item.id, response=unscripted_answer(item.request))


def refused(item: wire.RerankStreamRequest, reason: str, code: int) -> wire.RerankStreamResponse:
    return wire.RerankStreamResponse(
        id=item.id, error=wire.Error(code=code, reason=reason, message="refused", field="documents[0]")
    )


def test_every_query_gets_the_ranking_of_a_single_call(client: Twin) -> None:
    """Each query is answered once, under its own id, as rerank would have answered it."""
    outcomes = dict(client.rerank_many(queries(100), top_n=2))
    assert set(outcomes) == set(range(100))
    for number in (0, 57, 99):
        ranking = as_ranking(outcomes[number])
        assert list(ranking) == list(client.rerank(f"query {number}", DOCUMENTS, top_n=2))
        assert ranking.servers == ("gpu-0",)


def test_answers_come_as_they_are_ready(client: Twin, server: ScoringServer) -> None:
    """Answers in another order than the questions reach the query that they belong to."""

    def backwards(requests: Requests) -> Responses:
        items = list(itertools.islice(requests, 4))
        yield from map(answered, reversed(items))

    server.stream_script = [backwards]
    outcomes = list(client.rerank_many(queries(4)))
    assert [id for id, _ in outcomes] == [3, 2, 1, 0]
    for number, ranking in outcomes:
        assert list(as_ranking(ranking)) == list(client.rerank(f"query {number}", DOCUMENTS))


def test_answers_do_not_wait_for_further_questions(server: ScoringServer) -> None:
    """A blocking source that waits for the answer to its last query is served."""
    seen = threading.Semaphore(1)

    def one_by_one() -> Iterator[Query[int, str]]:
        for query in queries(5):
            assert seen.acquire(timeout=20)
            yield query

    with RerankClient(server.target) as client:
        for _ in client.rerank_many(one_by_one()):
            seen.release()


async def test_answers_do_not_wait_for_further_questions_async(server: ScoringServer) -> None:
    """An asynchronous source that waits for the answer to its last query is served."""
    seen = asyncio.Semaphore(1)

    async def one_by_one() -> AsyncIterator[Query[int, str]]:
        for query in queries(5):
            await asyncio.wait_for(seen.acquire(), 20)
            yield query

    async with AsyncRerankClient(server.target) as client:
        async for _ in client.rerank_many(one_by_one()):
            seen.release()


def test_own_objects_and_ids_come_back(client: Twin) -> None:
    """Ids and documents may be any objects."""
    key, document = object(), {"body": "text"}
    [(id, ranking)] = client.rerank_many([Query(key, "q", [document])], text=lambda d: d["body"])
    assert id is key
    assert isinstance(ranking, Ranking)
    assert ranking[0].document is document


def test_the_error_of_one_query_is_its_own(client: Twin, server: ScoringServer) -> None:
    """A query that the server refuses yields its error, and the others are answered."""

    def refuse_the_second(requests: Requests) -> Responses:
        for number, item in enumerate(requests):
            yield refused(item, "INVALID_REQUEST", 3) if number == 1 else answered(item)

    server.stream_script = [refuse_the_second]
    outcomes = dict(client.rerank_many(queries(3), request_id="batch-1"))
    error = outcomes.pop(1)
    assert isinstance(error, InvalidRequestError)
    assert (error.field, error.request_id, error.servers) == ("documents[0]", "batch-1", ("gpu-0",))
    assert all(isinstance(outcome, Ranking) for outcome in outcomes.values())


def test_a_query_that_cannot_be_right_is_not_sent(client: Twin, server: ScoringServer) -> None:
    """What is wrong with a query is found before it is sent, and told as its outcome."""
    outcomes = dict(client.rerank_many([Query("blank", " ", ["a"]), Query("fine", "q", ["a"])]))
    assert isinstance(outcomes["blank"], InvalidRequestError)
    assert isinstance(outcomes["fine"], Ranking)
    assert len(server.seen) == 1


def test_nothing_to_ask_opens_no_stream(client: Twin, server: ScoringServer) -> None:
    """No queries, or none with documents, need no server."""
    nobody: list[Query[int, str]] = []
    nothing: list[str] = []
    assert list(client.rerank_many(nobody)) == []
    [(id, ranking)] = client.rerank_many([Query(1, "q", nothing)])
    assert (id, len(as_ranking(ranking))) == (1, 0)
    assert server.streams_opened == 0


def test_long_queries_are_split_and_merged(connect: Connect, server: ScoringServer) -> None:
    """A query with more documents than one request may hold travels in parts."""
    documents = [f"document {number}" for number in range(50)]
    client = connect(server.target, max_request_documents=8)
    [(_, ranking)] = client.rerank_many([Query(1, "q", documents)], top_n=20)
    assert max(len(seen.request.documents) for seen in server.seen) <= 8
    expected = connect(server.target).rerank("q", documents, top_n=20)
    assert list(as_ranking(ranking)) == list(expected)


def test_a_stream_that_breaks_is_opened_again(client: Twin, server: ScoringServer) -> None:
    """Queries without an answer are asked again on a new stream, and no others."""

    def break_after_three(requests: Requests) -> Responses:
        for item in itertools.islice(requests, 3):
            yield answered(item)
        raise ConnectionResetError("the server dies here")

    server.stream_script = [break_after_three, break_after_three]
    outcomes = list(client.rerank_many(queries(20)))
    assert sorted(id for id, _ in outcomes) == list(range(20))
    assert all(isinstance(outcome, Ranking) for _, outcome in outcomes)
    assert server.streams_opened == 3
    assert len(server.seen) == 14  # 20 less the six that were answered before


def test_a_stream_that_ends_early_is_opened_again(client: Twin, server: ScoringServer) -> None:
    """A server that ends the stream in good order but too early leaves nobody without an answer."""
    server.stream_script = [lambda requests: map(answered, itertools.islice(requests, 1))]
    assert len(list(client.rerank_many(queries(5)))) == 5
    assert server.streams_opened == 2


@pytest.mark.parametrize("failures", [1, 3])
def test_a_stream_that_is_refused_is_opened_again(client: Twin, server: ScoringServer, failures: int) -> None:
    """A stream that meets unavailable servers is opened up to four times in a row."""
    server.stream_script = [Fail(grpc.StatusCode.UNAVAILABLE)] * failures
    assert len(list(client.rerank_many(queries(5)))) == 5
    assert server.streams_opened == failures + 1


def test_a_stream_that_cannot_be_opened_fails_the_call(client: Twin, server: ScoringServer) -> None:
    """When every attempt at the stream fails, the call raises its error."""
    server.stream_script = [Fail(grpc.StatusCode.UNAVAILABLE)] * 9
    with pytest.raises(UnavailableError, match="UNAVAILABLE: scripted"):
        list(client.rerank_many(queries(5)))
    assert server.streams_opened == 4


def test_a_stream_that_may_not_be_opened_fails_the_call_at_once(client: Twin, server: ScoringServer) -> None:
    """An error that no retry cures is raised after one attempt."""
    server.stream_script = [Fail(grpc.StatusCode.UNAUTHENTICATED)] * 2
    with pytest.raises(AuthenticationError):
        list(client.rerank_many(queries(5)))
    assert server.streams_opened == 1


def test_a_query_that_met_a_full_queue_is_asked_again(client: Twin, server: ScoringServer) -> None:
    """An overloaded server is asked again on the same stream, after the time it asked for."""

    def overloaded_at_first(requests: Requests) -> Responses:
        for number, item in enumerate(requests):
            if number < 2:
                answer = refused(item, "OVERLOADED", 8)
                answer.error.retry_after.FromMilliseconds(50)
                yield answer
            else:
                yield answered(item)

    server.stream_script = [overloaded_at_first]
    [(_, ranking)] = client.rerank_many(queries(1))
    assert isinstance(ranking, Ranking)
    assert server.streams_opened == 1


def test_a_query_that_meets_nothing_but_full_queues_fails(client: Twin, server: ScoringServer) -> None:
    """After the policy's number of attempts the query's outcome is the server's error."""

    def always_overloaded(requests: Requests) -> Responses:
        for item in requests:
            asked.append(item.id)
            yield refused(item, "OVERLOADED", 8)

    asked: list[str] = []
    server.stream_script = [always_overloaded]
    [(_, error)] = client.rerank_many(queries(1))
    assert isinstance(error, OverloadedError)
    assert len(asked) == 4


def test_queries_leave_a_server_that_drains(client: Twin, server: ScoringServer) -> None:
    """A query that a draining server refused goes to another stream, with those around it."""

    def draining(requests: Requests) -> Responses:
        for item in requests:
            yield refused(item, "DRAINING", 14)

    server.stream_script = [draining]
    outcomes = list(client.rerank_many(queries(5)))
    assert all(isinstance(outcome, Ranking) for _, outcome in outcomes)
    assert len(outcomes) == 5
    assert server.streams_opened == 2


def test_a_query_without_an_answer_expires(client: Twin, server: ScoringServer) -> None:
    """timeout_s bounds the wait of each query; the others are answered."""

    def forget_the_second(requests: Requests) -> Responses:
        for number, item in enumerate(requests):
            if number != 1:
                yield answered(item)

    server.stream_script = [forget_the_second]
    outcomes = dict(client.rerank_many(queries(4), timeout_s=0.5))
    assert isinstance(outcomes.pop(1), DeadlineExceededError)
    assert all(isinstance(outcome, Ranking) for outcome in outcomes.values())


def test_an_endless_source_is_read_a_window_ahead(connect: Connect, server: ScoringServer) -> None:
    """Queries are read as answers come in, so the source may be endless."""
    asked = 0

    def endless() -> Iterator[Query[int, str]]:
        nonlocal asked
        while True:
            asked += 1
            yield Query(asked, "q", DOCUMENTS)

    client = connect(server.target, max_in_flight=3)
    outcomes = client.rerank_many(endless())
    taken = list(itertools.islice(outcomes, 10))
    assert len(taken) == 10
    assert asked <= 10 + 3 + 1
    outcomes.close()  # type: ignore[attr-defined]


def test_leaving_early_ends_the_stream(client: Twin, server: ScoringServer) -> None:
    """A caller who stops iterating leaves no work behind on the server."""

    def endless() -> Iterator[Query[int, str]]:
        for number in itertools.count():
            yield Query(number, "q", DOCUMENTS)

    outcomes = client.rerank_many(endless())
    next(outcomes)
    outcomes.close()  # type: ignore[attr-defined]
    wait_until(lambda: server.streams_ended == 1, "the server sees the end of the stream")


def test_a_stream_ends_in_good_order(client: Twin, server: ScoringServer) -> None:
    """After the last answer the stream is closed, not cut."""
    ended = threading.Event()

    def note_the_end(requests: Requests) -> Responses:
        yield from map(answered, requests)
        ended.set()  # reached only when the client has said that there is no more

    server.stream_script = [note_the_end]
    assert len(list(client.rerank_many(queries(3)))) == 3
    assert ended.wait(timeout=20)


def test_an_error_of_the_source_is_raised(client: Twin, server: ScoringServer) -> None:
    """An exception in the caller's own iterable comes out where the caller iterates."""

    def broken() -> Iterator[Query[int, str]]:
        yield from queries(2)
        raise KeyError("the caller's own")

    with pytest.raises(KeyError, match="the caller's own"):
        list(client.rerank_many(broken()))


def test_queries_must_be_queries(client: Twin) -> None:
    """Anything else is refused with the name of the class to use."""
    wrong: Any = [("id", "query", ["a"])]
    with pytest.raises(TypeError, match=r"rerank\.Query"):
        list(client.rerank_many(wrong))


def test_options_are_checked_before_the_first_query(client: Twin) -> None:
    """A wrong option fails where rerank_many is called or first iterated, not for each query."""
    with pytest.raises(InvalidRequestError, match="top_n"):
        list(client.rerank_many(queries(1), top_n=-1))


async def test_queries_may_come_asynchronously(server: ScoringServer) -> None:
    """The asynchronous client also takes an asynchronous iterable."""

    async def source() -> AsyncIterator[Query[int, str]]:
        for query in queries(30):
            yield query

    async with AsyncRerankClient(server.target) as client:
        outcomes = [id async for id, _ in client.rerank_many(source())]
    assert sorted(outcomes) == list(range(30))


def test_no_thread_is_left_behind(server: ScoringServer) -> None:
    """A stream's threads end with it."""
    with RerankClient(server.target) as client:
        list(client.rerank_many(queries(3)))
        outcomes = client.rerank_many(queries(100))
        next(outcomes)
        outcomes.close()  # type: ignore[attr-defined]
    wait_until(
        lambda: not [thread for thread in threading.enumerate() if "rerank-stream" in thread.name],
        "the threads of the streams end",
    )
