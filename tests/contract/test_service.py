"""The contract on the wire: every edge case has one answer."""

import itertools
import json
import math
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rerank.v1 import rerank_pb2, rerank_pb2_grpc

from tests.support.calls import LARGE_MESSAGES, failure_of, metadata_of
from tests.support.ports import free_port
from tests.support.server_process import ServerProcess
from tests.support.texts import harmless_texts
from tests.support.waiting import wait_until

Request = rerank_pb2.RerankRequest


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(
        tmp_path_factory.mktemp("server"), "--max-documents", "100", "--max-tokens", "64", name="contract"
    ) as process:
        yield process


@pytest.fixture
def channel(server: ServerProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address, options=LARGE_MESSAGES) as opened:
        yield opened


@pytest.fixture
def stub(channel: grpc.Channel) -> rerank_pb2_grpc.RerankServiceStub:
    return rerank_pb2_grpc.RerankServiceStub(channel)


def rerank(stub: rerank_pb2_grpc.RerankServiceStub, request: Request) -> rerank_pb2.RerankResponse:
    return stub.Rerank(request, timeout=30)


def indices(response: rerank_pb2.RerankResponse) -> list[int]:
    return [result.index for result in response.results]


def scores(response: rerank_pb2.RerankResponse) -> list[float]:
    return [result.relevance_score for result in response.results]


def test_answers_come_best_first_in_zero_to_one(stub: rerank_pb2_grpc.RerankServiceStub) -> None:
    """Scores fall from first to last and lie in [0, 1]."""
    response = rerank(stub, Request(query="red fox", documents=["a cat", "the red fox", "a fox"]))
    assert indices(response) == [1, 2, 0]
    assert scores(response) == sorted(scores(response), reverse=True)
    assert all(0 <= score <= 1 for score in scores(response))
    assert response.model == "simulated"


def test_raw_scores_are_the_logits_of_the_same_order(stub: rerank_pb2_grpc.RerankServiceStub) -> None:
    """sigmoid(raw) is the score."""
    documents = ["a cat", "the red fox", "a fox"]
    raw = rerank(stub, Request(query="red fox", documents=documents, raw_scores=True))
    scored = rerank(stub, Request(query="red fox", documents=documents))
    assert indices(raw) == indices(scored)
    assert [1 / (1 + math.exp(-logit)) for logit in scores(raw)] == pytest.approx(scores(scored), abs=1e-15)


def test_no_documents_give_an_empty_answer(stub: rerank_pb2_grpc.RerankServiceStub) -> None:
    """Nothing to rank is not an error."""
    assert indices(rerank(stub, Request(query="q"))) == []


def test_a_blank_document_is_scored_as_the_empty_string(stub: rerank_pb2_grpc.RerankServiceStub) -> None:
    """One blank document does not fail the others."""
    response = rerank(stub, Request(query="q", documents=["", "   ", "q"]))
    assert sorted(indices(response)) == [0, 1, 2]
    assert indices(response)[0] == 2


@pytest.mark.parametrize("query", ["", " ", "\t\n", "\u2003"])
def test_a_blank_query_is_refused_by_name(channel: grpc.Channel, query: str) -> None:
    """INVALID_ARGUMENT names the field, for people, for programs, and in google.rpc details."""
    failure = failure_of(channel, Request(query=query, documents=["a"]))
    assert failure.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert failure.details() == "query: must not be blank"
    trailers: dict[str, Any] = dict(failure.trailing_metadata() or ())
    error = rerank_pb2.Error.FromString(trailers["rerank-error-bin"])
    assert (error.code, error.reason, error.field) == (3, "INVALID_REQUEST", "query")
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    bad_request = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad_request) for detail in status.details)
    assert bad_request.field_violations[0].field == "query"


@pytest.mark.parametrize(("top_n", "expected"), [(0, 4), (1, 1), (4, 4), (99, 4)])
def test_top_n_keeps_the_best(stub: rerank_pb2_grpc.RerankServiceStub, top_n: int, expected: int) -> None:
    """0 and more than there are mean all."""
    documents = ["d a", "b q", "c", "q q q"]
    everything = indices(rerank(stub, Request(query="q", documents=documents)))
    assert (
        indices(rerank(stub, Request(query="q", documents=documents, top_n=top_n))) == everything[:expected]
    )


def test_duplicates_are_computed_once_and_reported_each(stub: rerank_pb2_grpc.RerankServiceStub) -> None:
    """Equal documents have equal scores and keep the order of the request."""
    response = rerank(stub, Request(query="dup", documents=["same text", "same text", "same text"]))
    assert indices(response) == [0, 1, 2]
    assert len(set(scores(response))) == 1
    assert (response.usage.computed_pairs, response.usage.cached_pairs) == (1, 2)


def test_a_known_pair_costs_nothing_the_second_time(stub: rerank_pb2_grpc.RerankServiceStub) -> None:
    """Usage says what was computed and what was remembered."""
    request = Request(query="cached once", documents=["first text", "second text"])
    first, second = rerank(stub, request), rerank(stub, request)
    assert (first.usage.computed_pairs, first.usage.cached_pairs) == (2, 0)
    assert (second.usage.computed_tokens, second.usage.cached_pairs) == (0, 2)
    assert [r.SerializeToString() for r in first.results] == [r.SerializeToString() for r in second.results]


def test_documents_are_echoed_only_when_asked_for(stub: rerank_pb2_grpc.RerankServiceStub) -> None:
    """The field is absent otherwise, not empty."""
    silent = rerank(stub, Request(query="q", documents=["a"]))
    echoed = rerank(stub, Request(query="q", documents=["a"], return_documents=True))
    assert not silent.results[0].HasField("document")
    assert echoed.results[0].document == "a"


STRANGE = [
    "\x00",
    "a\x00b",
    "x" * 10_000_000,
    "שלום עולם ‮abc‬",
    "👩‍👩‍👧‍👦" * 500,
    "\ufeff\u200b\u200d",
    "e\u0301" * 1000,
    "\U0010ffff",
    "\ud7ff\ue000",
    "\r\n" * 1000,
]


@pytest.mark.parametrize("text", STRANGE, ids=lambda text: ascii(text[:12]))
def test_strange_text_gets_a_score(stub: rerank_pb2_grpc.RerankServiceStub, text: str) -> None:
    """NUL, ten megabytes of one letter, right-to-left, emoji: a score each, never a crash."""
    response = rerank(stub, Request(query="q", documents=[text, "q"]))
    assert sorted(indices(response)) == [0, 1]


@pytest.mark.parametrize("text", STRANGE, ids=lambda text: ascii(text[:12]))
def test_strange_queries_get_an_answer_or_a_clear_error(channel: grpc.Channel, text: str) -> None:
    """A query is never cut, so a large one is refused by name."""
    try:
        response = rerank(rerank_pb2_grpc.RerankServiceStub(channel), Request(query=text, documents=["q"]))
        assert indices(response) == [0]
    except grpc.RpcError as error:
        assert isinstance(error, grpc.Call)
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert (error.details() or "").startswith("query: ")


def test_invalid_utf8_is_refused(channel: grpc.Channel) -> None:
    """Bytes that are not text never reach the model."""
    call = channel.unary_unary(
        "/rerank.v1.RerankService/Rerank",
        request_serializer=lambda raw: raw,
        response_deserializer=rerank_pb2.RerankResponse.FromString,
    )
    with pytest.raises(grpc.RpcError) as failure:
        call(b"\x0a\x02\xff\xfe\x12\x01a", timeout=10)
    assert isinstance(failure.value, grpc.Call)
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "not valid UTF-8" in (failure.value.details() or "")


def test_bytes_that_are_no_message_end_a_stream_with_a_clear_error(channel: grpc.Channel) -> None:
    """The caller learns that its encoding is wrong, and nothing of our insides."""
    call = channel.stream_stream(
        "/rerank.v1.RerankService/RerankStream",
        request_serializer=lambda raw: raw,
        response_deserializer=rerank_pb2.RerankStreamResponse.FromString,
    )
    with pytest.raises(grpc.RpcError) as failure:
        list(call(iter([b"\xff\xff\xff"]), timeout=10))
    assert isinstance(failure.value, grpc.Call)
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_too_many_documents_name_the_limit(channel: grpc.Channel) -> None:
    """The caller learns what to split by."""
    failure = failure_of(channel, Request(query="q", documents=["a"] * 101))
    assert failure.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert failure.details() == "documents: the request has 101 documents; the limit is 100"


def test_a_query_that_fills_the_model_is_refused(channel: grpc.Channel) -> None:
    """The query is never cut, so it must leave room for a document."""
    failure = failure_of(channel, Request(query="word " * 70, documents=["a"]))
    assert failure.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "query" in (failure.details() or "")


def test_a_large_query_is_refused_by_its_bytes(channel: grpc.Channel) -> None:
    """Before anything reads it."""
    failure = failure_of(channel, Request(query="x" * 100_000, documents=["a"]))
    assert "the limit is 65,536" in (failure.details() or "")


def test_another_model_is_not_found(channel: grpc.Channel) -> None:
    """The error says which one is served."""
    failure = failure_of(channel, Request(query="q", documents=["a"], model="other"))
    assert failure.code() is grpc.StatusCode.NOT_FOUND
    assert "'simulated'" in (failure.details() or "")


def test_an_instruction_needs_a_model_that_takes_one(channel: grpc.Channel) -> None:
    """It is refused rather than ignored."""
    failure = failure_of(channel, Request(query="q", documents=["a"], instruction="be kind"))
    assert failure.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (failure.details() or "").startswith("instruction: ")


def test_truncation_is_reported_and_the_query_is_whole(stub: rerank_pb2_grpc.RerankServiceStub) -> None:
    """END cuts the document, and says of which."""
    response = rerank(stub, Request(query="q", documents=["short", "long " * 100]))
    by_index = {result.index: result for result in response.results}
    assert [by_index[0].truncated, by_index[1].truncated] == [False, True]
    assert by_index[1].tokens == 64


def test_truncation_error_names_the_document(channel: grpc.Channel) -> None:
    """ERROR refuses the request."""
    failure = failure_of(
        channel,
        Request(query="q", documents=["short", "long " * 100], truncation=rerank_pb2.TRUNCATION_ERROR),
    )
    assert failure.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (failure.details() or "").startswith("documents[1]: ")


def test_chunks_report_the_span_that_won(stub: rerank_pb2_grpc.RerankServiceStub) -> None:
    """CHUNK finds the needle beyond the model's limit, in characters of the document."""
    document = "straw " * 300 + "the golden needle " + "hay " * 300
    response = rerank(
        stub,
        Request(query="golden needle", documents=[document], truncation=rerank_pb2.TRUNCATION_CHUNK),
    )
    (result,) = response.results
    assert "golden needle" in document[result.winning_span.start : result.winning_span.end]
    assert not result.truncated
    cut = rerank(stub, Request(query="golden needle", documents=[document]))
    assert result.relevance_score > cut.results[0].relevance_score


def test_max_tokens_per_document_bounds_what_is_read(stub: rerank_pb2_grpc.RerankServiceStub) -> None:
    """A caller may buy speed for length."""
    request = Request(query="q", documents=["word " * 30], max_tokens_per_document=10)
    (result,) = rerank(stub, request).results
    assert result.truncated
    assert result.tokens == 10 + 4


def test_one_bad_document_fails_alone(stub: rerank_pb2_grpc.RerankServiceStub) -> None:
    """It is listed with its index and reason; the rest are ranked."""
    response = rerank(stub, Request(query="q", documents=["a", "simulate_error", "q", "simulate_nan"]))
    assert indices(response) == [2, 0]
    assert [(failure.index, bool(failure.reason)) for failure in response.failures] == [(1, True), (3, True)]


def test_nothing_but_bad_documents_is_an_internal_error(channel: grpc.Channel) -> None:
    """There is no answer to give."""
    failure = failure_of(channel, Request(query="q", documents=["simulate_error"]))
    assert failure.code() is grpc.StatusCode.INTERNAL


def test_the_callers_request_id_comes_back(
    stub: rerank_pb2_grpc.RerankServiceStub, server: ServerProcess
) -> None:
    """The same id is in the answer and in the server's log."""
    _, call = stub.Rerank.with_call(
        Request(query="q", documents=["a"]), timeout=10, metadata=(("x-request-id", "my-id.1"),)
    )
    assert metadata_of(call)["x-request-id"] == "my-id.1"
    assert metadata_of(call)["x-served-by"] == "contract"
    wait_until(lambda: '"request_id": "my-id.1"' in server.log.read_text(), "the id in the log")


@pytest.mark.parametrize("offered", ["", "x" * 129, "a b", "{}", '"quoted"'])
def test_a_silly_request_id_is_replaced(stub: rerank_pb2_grpc.RerankServiceStub, offered: str) -> None:
    """Nobody writes what they like into our logs."""
    _, call = stub.Rerank.with_call(
        Request(query="q", documents=["a"]), timeout=10, metadata=(("x-request-id", offered),)
    )
    assert metadata_of(call)["x-request-id"] != offered
    assert len(metadata_of(call)["x-request-id"]) == 32


def test_logs_are_json_off_a_terminal(server: ServerProcess, stub: rerank_pb2_grpc.RerankServiceStub) -> None:
    """Each line is one object with a level, a time and an event."""
    rerank(stub, Request(query="q", documents=["a"]))
    wait_until(lambda: '"event": "call"' in server.log.read_text(), "a call in the log")
    for line in server.log.read_text().splitlines():
        assert {"level", "timestamp", "event"} <= json.loads(line).keys()


def test_the_model_describes_itself(stub: rerank_pb2_grpc.RerankServiceStub) -> None:
    """GetModel has what an SDK needs to split requests, and a person to look."""
    model = stub.GetModel(rerank_pb2.GetModelRequest(), timeout=10)
    assert model.model == "simulated"
    assert model.max_tokens == 64
    assert model.limits.max_documents == 100
    assert (model.score_range.minimum, model.score_range.maximum) == (0, 1)
    assert model.server == "contract"


def test_every_answer_names_the_weights_that_scored(stub: rerank_pb2_grpc.RerankServiceStub) -> None:
    """GetModel and each answer carry the fingerprint by which scores can be compared."""
    model = stub.GetModel(rerank_pb2.GetModelRequest(), timeout=10)
    response = stub.Rerank(Request(query="word", documents=["word"]), timeout=10)
    assert model.fingerprint == response.fingerprint != ""


def test_a_stream_answers_each_query_by_its_id(stub: rerank_pb2_grpc.RerankServiceStub) -> None:
    """A bad query gets its own error, and the stream goes on."""
    questions = {f"query {i}": Request(query=f"word{i}", documents=[f"word{i}", "other"]) for i in range(200)}
    questions["query 7"] = Request(query=" ", documents=["a"])
    stream = stub.RerankStream(
        (rerank_pb2.RerankStreamRequest(id=name, request=request) for name, request in questions.items()),
        timeout=30,
    )
    answers = {answer.id: answer for answer in stream}
    assert answers.keys() == questions.keys()
    assert answers["query 7"].error.field == "query"
    assert answers["query 7"].error.code == 3
    assert all(indices(answers[f"query {i}"].response) == [0, 1] for i in range(200) if i != 7)


def test_a_stream_refuses_ids_that_can_not_be_told_apart(stub: rerank_pb2_grpc.RerankServiceStub) -> None:
    """An empty id is an error of that query alone."""
    (answer,) = stub.RerankStream(
        iter([rerank_pb2.RerankStreamRequest(request=Request(query="q", documents=["a"]))]), timeout=10
    )
    assert answer.error.field == "id"


def test_a_short_question_is_answered_while_a_long_one_waits(server: ServerProcess) -> None:
    """Answers of a stream come as they are done, not as they were asked."""
    long = Request(query="long", documents=[f"{'word ' * 50}{i}" for i in range(100)])
    short = Request(query="short", documents=["short"])
    asked_all = threading.Event()

    def ask() -> Iterator[rerank_pb2.RerankStreamRequest]:
        for i in range(20):
            long_i = Request(query=f"long {i}", documents=long.documents)
            yield rerank_pb2.RerankStreamRequest(id=f"long {i}", request=long_i)
        yield rerank_pb2.RerankStreamRequest(id="short", request=short)
        asked_all.wait(30)

    with grpc.insecure_channel(server.address) as channel:
        stream = rerank_pb2_grpc.RerankServiceStub(channel).RerankStream(ask(), timeout=60)
        before_short = 0
        for answer in stream:
            if answer.id == "short":
                break
            before_short += 1
        asked_all.set()
        stream.cancel()
    assert before_short < 10


def test_health_answers_for_the_server_and_for_the_service(channel: grpc.Channel) -> None:
    """Both names are SERVING; an unknown one is NOT_FOUND."""
    health = health_pb2_grpc.HealthStub(channel)
    for name in ("", "rerank.v1.RerankService"):
        assert health.Check(health_pb2.HealthCheckRequest(service=name), timeout=5).status == 1
    with pytest.raises(grpc.RpcError) as failure:
        health.Check(health_pb2.HealthCheckRequest(service="unknown"), timeout=5)
    assert isinstance(failure.value, grpc.Call)
    assert failure.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_deadline_that_passes_is_told(channel: grpc.Channel) -> None:
    """The caller does not wait longer than it said."""
    failure = failure_of(
        channel, Request(query="slow", documents=[f"{'word ' * 50}{i}" for i in range(100)]), timeout_s=0.02
    )
    assert failure.code() in {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    query=harmless_texts(max_size=20),
    documents=st.lists(harmless_texts(max_size=40), max_size=6),
    top_n=st.integers(0, 2**32 - 1),
    truncation=st.integers(0, 9),
    priority=st.integers(0, 9),
    max_tokens=st.integers(0, 2**32 - 1),
)
def test_any_request_gets_an_answer_or_a_clear_error(
    channel: grpc.Channel,
    query: str,
    documents: list[str],
    top_n: int,
    truncation: int,
    priority: int,
    max_tokens: int,
) -> None:
    """Whatever hypothesis finds: each document once, or INVALID_ARGUMENT with a field."""
    request = Request(query=query, documents=documents, top_n=top_n, max_tokens_per_document=max_tokens)
    request.truncation = truncation  # type: ignore[assignment]
    request.priority = priority  # type: ignore[assignment]
    try:
        response = rerank(rerank_pb2_grpc.RerankServiceStub(channel), request)
        expected = len(documents) if top_n == 0 else min(top_n, len(documents))
        assert len(set(indices(response))) == expected
    except grpc.RpcError as error:
        assert isinstance(error, grpc.Call)
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        named = (error.details() or "").partition(":")[0].partition("[")[0]
        assert named in {"query", "documents", "truncation", "priority"}


def test_sigterm_drains_and_nobody_loses_an_answer(tmp_path_factory: pytest.TempPathFactory) -> None:
    """NOT_SERVING at once, what was accepted is finished, and the exit status is 0."""
    folder = tmp_path_factory.mktemp("drain")
    with ServerProcess(folder, "--drain-delay", "0.5", "--simulated-tokens-per-second", "2000") as process:
        with grpc.insecure_channel(process.address) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(
                health_pb2.HealthCheckRequest(service="rerank.v1.RerankService")
            )
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            stub = rerank_pb2_grpc.RerankServiceStub(channel)
            slow = stub.Rerank.future(
                Request(query="q", documents=[f"{'word ' * 50}{i}" for i in range(60)]), timeout=30
            )
            wait_until(lambda: not slow.done(), "the call to be under way")
            rerank(stub, Request(query="q", documents=["quick"]))
            process.signal(signal.SIGTERM)
            assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert indices(rerank(stub, Request(query="q", documents=["during the delay"]))) == [0]
            assert len(slow.result().results) == 60
        assert process.process.wait(15) == 0


def test_a_draining_server_sends_its_connections_elsewhere(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """After the delay the port is closed and connections say goodbye, while accepted calls go on."""
    folder = tmp_path_factory.mktemp("goodbye")
    with ServerProcess(folder, "--drain-delay", "0.2", "--simulated-tokens-per-second", "2000") as process:
        with grpc.insecure_channel(process.address) as channel:
            stub = rerank_pb2_grpc.RerankServiceStub(channel)
            slow = stub.Rerank.future(
                Request(query="q", documents=[f"{'word ' * 50}{i}" for i in range(120)]), timeout=30
            )
            rerank(stub, Request(query="q", documents=["quick"]))
            process.signal(signal.SIGTERM)
            wait_until(lambda: process.health() is None, "the port to close")
            # On the same channel: it has lost its connection and finds nobody to connect to.
            assert "connect" in (failure_of(channel, Request(query="q")).details() or "").lower()
            assert not slow.done()
            assert len(slow.result().results) == 120
        assert process.process.wait(15) == 0


def test_a_second_signal_exits_at_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """An operator in a hurry is obeyed."""
    with ServerProcess(tmp_path_factory.mktemp("hurry"), "--drain-delay", "300") as process:
        process.signal(signal.SIGTERM)
        wait_until(lambda: '"event": "draining"' in process.log.read_text(), "the drain to begin")
        process.signal(signal.SIGTERM)
        assert process.process.wait(5) == 1


def test_a_message_that_can_not_be_read_is_refused_like_any_other_call(server: ServerProcess) -> None:
    """It has its line in the log and its id in the trailers."""
    with grpc.insecure_channel(server.address) as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes]
        call = channel.unary_unary("/rerank.v1.RerankService/Rerank")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"\xff\xff", metadata=(("x-request-id", "unreadable-1"),), timeout=10)
    failure = caught.value
    assert isinstance(failure, grpc.Call)
    assert failure.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert ("x-request-id", "unreadable-1") in [(name, value) for name, value in failure.trailing_metadata()]
    wait_until(lambda: '"request_id": "unreadable-1"' in server.log.read_text(), "its line in the log")


def test_a_stream_waits_for_room_instead_of_being_refused(tmp_path: Path) -> None:
    """Large queries are read one after the other, and all are answered."""
    with ServerProcess(tmp_path, "--receiving-mib", "1", "--simulated-tokens-per-second", "1e7") as small:
        queries = [
            rerank_pb2.RerankStreamRequest(
                id=str(number), request=Request(query="q", documents=[f"{number} {'x' * 900_000}"])
            )
            for number in range(12)
        ]
        with grpc.insecure_channel(small.address) as channel:
            answers = rerank_pb2_grpc.RerankServiceStub(channel).RerankStream(iter(queries), timeout=60)
            assert {answer.id for answer in answers if answer.response.results} == {q.id for q in queries}


def test_the_texts_of_all_requests_have_a_bound_together(tmp_path: Path) -> None:
    """Beyond it large requests are told to come back, and small ones are taken."""
    with (
        ServerProcess(tmp_path, "--open-requests-mib", "2", "--drain-grace", "0") as busy,
        grpc.insecure_channel(busy.address) as channel,
    ):
        stub = rerank_pb2_grpc.RerankServiceStub(channel)
        large = [f"{word} {'x' * 1_500_000}" for word in ("simulate_stuck", "other")]
        first = stub.Rerank.future(Request(query="q", documents=large[:1]), timeout=60)
        # Taken, and not answered only because the device is busy.
        small = (Request(query="q", documents=[f"small {number}"]) for number in itertools.count())
        wait_until(lambda: "Deadline Exceeded" in _failure(stub, next(small)), "the device to be busy")
        refused = _failure(stub, Request(query="q", documents=large[1:]))
        assert "bytes of requests are worked on" in refused
        assert "--open-requests-mib" in refused
        first.cancel()


def _failure(stub: rerank_pb2_grpc.RerankServiceStub, request: Request) -> str:
    try:
        stub.Rerank(request, timeout=0.3)
    except grpc.RpcError as failure:
        return str(failure)
    return ""


@pytest.mark.parametrize(
    ("document", "options"),
    [("simulate_lost", ()), ("simulate_stuck", ("--stuck-after", "0.5"))],
    ids=["lost", "stuck"],
)
def test_a_dead_device_ends_the_process(
    tmp_path_factory: pytest.TempPathFactory, document: str, options: tuple[str, ...]
) -> None:
    """The caller is told that its request may be the cause, and the supervisor sees a failure."""
    with ServerProcess(tmp_path_factory.mktemp("dead"), *options) as process:
        with grpc.insecure_channel(process.address) as channel:
            failure = failure_of(channel, Request(query="q", documents=[document]), timeout_s=15)
            assert failure.code() is grpc.StatusCode.UNAVAILABLE
            assert "the device died while it scored this request" in (failure.details() or "")
        assert process.process.wait(15) == 70


def test_a_taken_port_is_one_clear_line(
    server: ServerProcess, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The server says which option to change, and does not start."""
    second = ServerProcess(tmp_path_factory.mktemp("taken"), port=server.port)
    second.start()
    assert second.process.wait(30) == 2
    (line,) = [line for line in second.log.read_text().splitlines() if line.startswith("error: ")]
    assert f"--port {server.port}" in line


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--port", "http"), "--port: 'http' is not valid"),
        (("--device", "gpu"), "--device: 'gpu' is not valid: use auto"),
        (("--device", "cuda:7", "--model", "ms-marco-MiniLM-L-12-v2"), "--device cuda:7"),
        (("--max-documents", "0"), "--max-documents: '0' is not valid"),
        (("--model", "/nowhere/at/all"), "--model"),
    ],
)
def test_a_wrong_option_is_one_clear_line(
    tmp_path_factory: pytest.TempPathFactory, options: tuple[str, ...], said: str
) -> None:
    """It names the option, and the exit status is not zero."""
    process = ServerProcess(tmp_path_factory.mktemp("wrong"), *options, port=free_port())
    process.start()
    assert process.process.wait(60) == 2
    last = process.log.read_text().splitlines()[-1]
    assert last.startswith("error: ")
    assert said in last


def test_every_option_is_an_environment_variable(tmp_path_factory: pytest.TempPathFactory) -> None:
    """RERANK_MAX_DOCUMENTS is --max-documents."""
    folder = tmp_path_factory.mktemp("environment")
    with (
        ServerProcess(folder, environment={"RERANK_MAX_DOCUMENTS": "3"}) as process,
        grpc.insecure_channel(process.address) as channel,
    ):
        failure = failure_of(channel, Request(query="q", documents=["a"] * 4))
        assert "the limit is 3" in (failure.details() or "")
