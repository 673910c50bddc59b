"""The SDK against the project's own server, as a process of its own."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rerank import (
    InvalidRequestError,
    ModelNotServedError,
    Query,
    Ranking,
    RerankClient,
    TooLargeError,
)

from tests.sdk.twins import Connect
from tests.support.server_process import ServerProcess
from tests.support.waiting import wait_until

DOCUMENTS = [f"document {number} " + "word " * (number % 40) for number in range(300)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A real server with the simulated model."""
    with ServerProcess(tmp_path_factory.mktemp("server")) as running:
        running.wait_ready()
        yield running


def test_a_call_that_is_split_gives_the_ranking_of_one_request(
    connect: Connect, server: ServerProcess
) -> None:
    """Order and scores don't depend on how a call was split, on the real server too."""
    whole = connect(server.address, max_request_documents=1000).rerank("query", DOCUMENTS)
    parts = connect(server.address, max_request_documents=16).rerank("query", DOCUMENTS)
    assert [(r.index, r.score, r.tokens) for r in parts] == [(r.index, r.score, r.tokens) for r in whole]
    assert whole.servers == parts.servers == ("server",)
    assert whole.model == parts.model


def test_many_queries_give_the_rankings_of_single_calls(connect: Connect, server: ServerProcess) -> None:
    """A stream answers as single calls do."""
    client = connect(server.address)
    queries = [Query(number, f"query {number}", DOCUMENTS[: 10 + number]) for number in range(40)]
    outcomes = dict(client.rerank_many(queries, top_n=5, priority="batch"))
    assert len(outcomes) == 40
    for query in queries:
        ranking = outcomes[query.id]
        assert isinstance(ranking, Ranking)
        expected = client.rerank(query.query, query.documents, top_n=5)
        assert [(r.index, r.score) for r in ranking] == [(r.index, r.score) for r in expected]


def test_the_servers_errors_arrive_as_this_packages(connect: Connect, server: ServerProcess) -> None:
    """The server's refusals have the right class, field and request id."""
    client = connect(server.address)
    with pytest.raises(ModelNotServedError) as not_served:
        client.rerank("query", ["a"], model="another", request_id="id-9")
    assert (not_served.value.request_id, not_served.value.servers) == ("id-9", ("server",))
    with pytest.raises(TooLargeError) as too_large:
        client.rerank("query " * 20_000, ["a"])
    assert too_large.value.field == "query"
    with pytest.raises(InvalidRequestError) as caught:
        client.rerank("query", ["a"], instruction="no such thing")
    assert caught.value.field == "instruction"


def test_get_model_and_health_tell_of_the_server(connect: Connect, server: ServerProcess) -> None:
    """The server's description of itself is read in full."""
    client = connect(server.address)
    client.wait_until_ready(timeout_s=20)
    info = client.get_model()
    assert info.server == "server"
    assert info.limits.max_documents > 0
    assert (info.score_range.minimum, info.score_range.maximum) == (0.0, 1.0)


def test_the_limits_of_a_small_server_are_learnt(connect: Connect, tmp_path: Path) -> None:
    """A server that takes fewer documents than the client sends is asked for its limits, once."""
    with ServerProcess(tmp_path, "--max-documents", "20") as small:
        small.wait_ready()
        client = connect(small.address)
        assert len(client.rerank("query", DOCUMENTS)) == 300
        assert len(client.rerank("query", DOCUMENTS, top_n=3)) == 3
        [(_, ranking)] = client.rerank_many([Query(1, "query", DOCUMENTS)])
        assert isinstance(ranking, Ranking)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_server_that_goes_away_loses_nothing(tmp_path: Path, how: signal.Signals) -> None:
    """Calls and a stream go on without an error while one of two servers is stopped or killed."""
    options = ("--simulated-tokens-per-second", "20000")
    first = ServerProcess(tmp_path, *options, name="first")
    second = ServerProcess(tmp_path, *options, name="second")
    with first, second:
        first.wait_ready()
        second.wait_ready()
        target = f"ipv4:127.0.0.1:{first.port},127.0.0.1:{second.port}"
        with RerankClient(target, load_balancing="round_robin") as client, calling(client) as calls:
            queries = (Query(number, "query", DOCUMENTS[:5]) for number in range(400))
            outcomes = dict[int, object]()
            for id, outcome in client.rerank_many(queries, timeout_s=60):
                outcomes[id] = outcome
                if len(outcomes) == 100:
                    wait_until(lambda: set(calls.served) == {"first", "second"}, "both servers to answer")
                    first.signal(how)
            before = len(calls.served)
            wait_until(lambda: len(calls.served) > before + 20, "calls to go on")
        assert calls.failures == []
        assert [outcome for outcome in outcomes.values() if not isinstance(outcome, Ranking)] == []
        assert len(outcomes) == 400


@dataclass
class Calls:
    """What became of calls that were made one after the other on a few threads."""

    served: list[str] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)


@contextmanager
def calling(client: RerankClient) -> Iterator[Calls]:
    """Keep four calls under way."""
    calls = Calls()
    stop = threading.Event()

    def call() -> None:
        while not stop.is_set():
            try:
                calls.served.extend(client.rerank("query", DOCUMENTS[:20], timeout_s=60).servers)
            except Exception as error:
                calls.failures.append(error)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield calls
    finally:
        stop.set()
        for thread in threads:
            thread.join()
