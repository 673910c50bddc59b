"""Long lists of documents are cut, sent concurrently and merged exactly."""

import threading

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rerank import InvalidRequestError, RerankError, RerankOptions, ScoringFailedError, TooLargeError
from rerank._plan import plan
from rerank._sharding import ShardLimits, document_cost_bytes, split
from rerank.v1 import rerank_pb2 as wire

from tests.sdk.scoring_server import Fail, ScoringServer, unscripted_answer
from tests.sdk.twins import Connect, Twin

texts = st.text(max_size=12)


@given(
    costs=st.lists(st.integers(1, 50), max_size=60),
    max_bytes=st.integers(1, 100),
    max_documents=st.integers(1, 20),
)
def test_shards_are_the_list_in_order_and_within_the_limits(
    costs: list[int], max_bytes: int, max_documents: int
) -> None:
    """Shards cover the list once, in order; only a document that is too big alone exceeds a limit."""
    shards = split(costs, max_bytes=max_bytes, max_documents=max_documents)
    assert [index for shard in shards for index in shard] == list(range(len(costs)))
    for shard in shards:
        assert 1 <= len(shard) <= max_documents
        assert len(shard) == 1 or sum(costs[index] for index in shard) <= max_bytes


@given(documents=st.integers(1, 2000), max_documents=st.integers(1, 200))
def test_documents_are_spread_evenly(documents: int, max_documents: int) -> None:
    """Without a limit on bytes there are as few shards as possible, and none is much longer."""
    shards = split([1] * documents, max_bytes=10**9, max_documents=max_documents)
    assert len(shards) == -(-documents // max(map(len, shards)))
    assert len(shards) <= -(-documents // max_documents)
    assert max(map(len, shards)) <= max_documents


@given(documents=st.lists(texts, max_size=20), query=texts)
def test_costs_are_the_bytes_on_the_wire(documents: list[str], query: str) -> None:
    """The cost of a document is exactly what it adds to the serialised request."""
    request = wire.RerankRequest(query=query)
    expected = request.ByteSize() + sum(document_cost_bytes(len(text.encode())) for text in documents)
    request.documents.extend(documents)
    assert request.ByteSize() == expected


@pytest.mark.parametrize("length", [127, 128, 16383, 16384, 2_097_151, 2_097_152])
def test_costs_count_the_length_prefix(length: int) -> None:
    """The cost is exact where the length prefix grows by a byte."""
    assert document_cost_bytes(length) == wire.RerankRequest(documents=["x" * length]).ByteSize()


@given(
    documents=st.lists(texts | st.just("unscorable"), min_size=1, max_size=30),
    max_documents=st.integers(1, 12),
    max_bytes=st.integers(80, 300),
    top_n=st.none() | st.integers(0, 35),
    raw_scores=st.booleans(),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_split_call_gives_the_ranking_of_one_request(
    connect: Connect,
    server: ScoringServer,
    documents: list[str],
    max_documents: int,
    max_bytes: int,
    top_n: int | None,
    raw_scores: bool,
) -> None:
    """Order, scores, truncation, failures and usage don't depend on how a call was split."""
    whole = connect(server.target).rerank("query", documents, top_n=top_n, raw_scores=raw_scores)
    split_client = connect(server.target, max_request_documents=max_documents, max_request_bytes=max_bytes)
    parts = split_client.rerank("query", documents, top_n=top_n, raw_scores=raw_scores)
    assert list(parts) == list(whole)
    assert parts.failures == whole.failures
    assert parts.usage.computed_tokens == whole.usage.computed_tokens
    assert parts.usage.computed_pairs == whole.usage.computed_pairs


def test_a_thousand_documents_travel_in_eight_requests(client: Twin, server: ScoringServer) -> None:
    """By default a request holds at most 128 documents, under the one id of the call."""
    ranking = client.rerank("query", [str(number) for number in range(1000)], top_n=10)
    assert len(ranking) == 10
    assert [len(seen.request.documents) for seen in server.seen] == [125] * 8
    assert {seen.metadata["x-request-id"] for seen in server.seen} == {ranking.request_id}
    assert all(seen.request.top_n == 10 and seen.request.raw_scores for seen in server.seen)


@given(documents=st.lists(texts, max_size=20), query=texts, max_bytes=st.integers(60, 200), raw=st.booleans())
def test_no_request_exceeds_the_limit_of_bytes(
    documents: list[str], query: str, max_bytes: int, raw: bool
) -> None:
    """Requests stay within max_request_bytes, query and options included."""
    planned = plan(
        f"query {query}",
        documents,
        text=None,
        options=RerankOptions(raw_scores=raw, instruction="i", top_n=3),
        limits=ShardLimits(max_bytes=max_bytes),
    )
    for request in planned.requests:
        assert request.ByteSize() <= max_bytes or len(request.documents) == 1


def test_a_document_that_is_too_big_travels_alone(connect: Connect, server: ScoringServer) -> None:
    """One document above max_request_bytes gets a request of its own; the server decides."""
    connect(server.target, max_request_bytes=100).rerank("query", ["a", "b" * 500, "c"])
    assert sorted(len(seen.request.documents) for seen in server.seen) == [1, 1, 1]


def test_a_query_that_fills_a_request_is_refused(connect: Connect) -> None:
    """A query that leaves no room for documents is named, instead of sent with each of them."""
    client = connect("localhost:1", max_request_bytes=100)
    with pytest.raises(TooLargeError, match="max_request_bytes") as caught:
        client.rerank("q" * 200, ["a"])
    assert caught.value.field == "query"


def test_parts_are_sent_concurrently_but_bounded(connect: Connect, server: ScoringServer) -> None:
    """All parts up to max_in_flight are out at once, and never more."""
    together = threading.Barrier(4)
    lock = threading.Lock()
    running = peak = 0

    def answer(request: wire.RerankRequest, context: grpc.ServicerContext) -> wire.RerankResponse:
        nonlocal running, peak
        with lock:
            running += 1
            peak = max(peak, running)
        together.wait(timeout=20)  # passes only if four requests are out at the same time
        with lock:
            running -= 1
        return unscripted_answer(request)

    server.script = [answer] * 12
    client = connect(server.target, max_request_documents=1, max_in_flight=4)
    client.rerank("query", [str(number) for number in range(12)])
    assert peak == 4


def test_a_part_that_fails_fails_the_call_and_cancels_the_others(
    connect: Connect, server: ScoringServer
) -> None:
    """The first error ends the call, and the servers are told to stop the rest."""
    all_arrived = threading.Barrier(3)
    stopped = threading.Semaphore(0)

    def fail(request: wire.RerankRequest, context: grpc.ServicerContext) -> wire.RerankResponse:
        all_arrived.wait(timeout=20)
        Fail(grpc.StatusCode.INTERNAL, error=wire.Error(code=13, reason="SCORING_FAILED")).abort(
            context, "gpu-0"
        )
        raise AssertionError

    def hang(request: wire.RerankRequest, context: grpc.ServicerContext) -> wire.RerankResponse:
        context.add_callback(stopped.release)
        all_arrived.wait(timeout=20)
        stopped.acquire(timeout=20)
        stopped.release()
        return unscripted_answer(request)

    server.script = [hang, fail, hang]
    client = connect(server.target, max_request_documents=1)
    with pytest.raises(ScoringFailedError):
        client.rerank("query", ["a", "b", "c"], timeout_s=60)
    assert stopped.acquire(timeout=20)


def test_errors_name_documents_of_the_whole_list(connect: Connect, server: ScoringServer) -> None:
    """ "documents[1]" of a part is told as its position in the caller's list."""

    def refuse(request: wire.RerankRequest, context: grpc.ServicerContext) -> wire.RerankResponse:
        index = list(request.documents).index("bad")
        told = wire.Error(
            code=3,
            reason="INVALID_REQUEST",
            message=f"documents[{index}]: is too long",
            field=f"documents[{index}]",
        )
        Fail(grpc.StatusCode.INVALID_ARGUMENT, error=told).abort(context, "gpu-0")
        raise AssertionError

    def answer(request: wire.RerankRequest, context: grpc.ServicerContext) -> wire.RerankResponse:
        return refuse(request, context) if "bad" in request.documents else unscripted_answer(request)

    server.script = [answer] * 3
    client = connect(server.target, max_request_documents=4)
    with pytest.raises(InvalidRequestError) as caught:
        client.rerank("query", [*"abcdefgh", "i", "bad"])
    assert caught.value.field == "documents[9]"
    assert caught.value.message == "documents[9]: is too long"


def test_the_deadline_covers_parts_that_wait_for_their_turn(connect: Connect, server: ScoringServer) -> None:
    """Parts share one deadline, so those that are sent later get less time."""

    def linger(request: wire.RerankRequest, context: grpc.ServicerContext) -> wire.RerankResponse:
        while (context.time_remaining() or 0) > 28:
            pass
        return unscripted_answer(request)

    server.script = [linger]
    client = connect(server.target, max_request_documents=1, max_in_flight=1)
    client.rerank("query", ["a", "b"], timeout_s=30)
    assert server.seen[1].time_remaining_s <= 28.5


@pytest.mark.parametrize("argument", ["max_request_bytes", "max_request_documents", "max_in_flight"])
def test_limits_must_be_positive(connect: Connect, argument: str) -> None:
    """A limit below 1 is refused when the client is made."""
    with pytest.raises(ValueError, match=argument):
        connect("localhost:1", **{argument: 0})


def test_servers_that_took_part_are_listed_once(connect: Connect) -> None:
    """A call that was spread over servers names each of them."""
    with ScoringServer(name="gpu-0") as first, ScoringServer(name="gpu-1") as second:
        client = connect(
            f"ipv4:127.0.0.1:{first.port},127.0.0.1:{second.port}",
            load_balancing="round_robin",
            max_request_documents=1,
        )
        ranking = client.rerank("query", ["a"] * 16)
        seen = set(ranking.servers)
        while len(seen) < 2:  # the second connection may come up a moment later
            seen |= set(client.rerank("query", ["a"] * 16).servers)
        assert seen == {"gpu-0", "gpu-1"}
        assert len(ranking.servers) == len(set(ranking.servers))


def test_a_limit_that_splitting_does_not_cure_is_told(client: Twin, server: ScoringServer) -> None:
    """A proxy that takes less than its server says is not asked again and again."""
    too_large = Fail(grpc.StatusCode.UNKNOWN, "Received http2 header with status: 413")
    server.script = [too_large]
    with pytest.raises(TooLargeError, match="lower max_request_bytes"):
        client.rerank("query", ["a"])
    assert len(server.seen) == 1


def test_errors_of_parts_are_of_this_package(connect: Connect) -> None:
    """Whatever happens to a part, the caller sees a RerankError."""
    client = connect("localhost:1", max_request_documents=1)
    with pytest.raises(RerankError):
        client.rerank("query", ["a", "b", "c"])
