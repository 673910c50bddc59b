"""Streams, and calls with long answers, whose servers are killed in the middle of them."""

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rerank import AsyncRerankClient, Query, Ranking, RerankClient, RerankError

from deploy.local.certificate import CertificateFiles
from tests.fleet.chaos.fleet import ChaosFleet
from tests.fleet.chaos.workload import Question, make_questions
from tests.support.waiting import wait_until

KILLS = 6
OUTCOMES_BETWEEN_KILLS = 8
TIMEOUT_S = 30.0
QUICK = {"--simulated-tokens-per-second": "400000"}
# An answer of so many results is sent in several frames, and a killed server gets not all of them out.
LONG_ANSWERS = make_questions(4, documents=(900, 1000))
QUESTIONS = make_questions(50, documents=(20, 60))


@dataclass
class Watched:
    """Work that goes on until it is told to stop, and what became of it."""

    stop: bool = False
    answered: int = 0
    problems: list[str] = field(default_factory=list)
    server: str = ""
    """Which answered last."""

    def take(self, question: Question, outcome: "Ranking[str] | RerankError") -> None:
        """Note one outcome."""
        if isinstance(outcome, RerankError):
            self.problems.append(repr(outcome))
        elif not question.is_answered_by(outcome):
            self.problems.append(f"wrong: {outcome!r}")
        else:
            self.answered += 1
            self.server = outcome.servers[-1]

    def queries(self) -> Iterator[Query[Question, str]]:
        """Questions without end, until stopped."""
        for question in itertools.cycle(QUESTIONS):
            if self.stop:
                return
            yield Query(question, question.query, question.documents)


def stream(fleet: ChaosFleet, watched: Watched) -> None:
    with RerankClient(fleet.nginx.address, tls=fleet.tls, timeout_s=TIMEOUT_S, max_in_flight=4) as client:
        for question, outcome in client.rerank_many(watched.queries()):
            watched.take(question, outcome)


def stream_asynchronously(fleet: ChaosFleet, watched: Watched) -> None:
    async def run() -> None:
        client = AsyncRerankClient(fleet.nginx.address, tls=fleet.tls, timeout_s=TIMEOUT_S, max_in_flight=4)
        async with client:
            async for question, outcome in client.rerank_many(watched.queries()):
                watched.take(question, outcome)

    asyncio.run(run())


def call_for_long_answers(fleet: ChaosFleet, watched: Watched) -> None:
    with RerankClient(
        fleet.nginx.address, tls=fleet.tls, timeout_s=TIMEOUT_S, max_request_documents=1000
    ) as client:
        for question in itertools.cycle(LONG_ANSWERS):
            if watched.stop:
                return
            watched.take(question, client.rerank(question.query, question.documents))


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, certificate: CertificateFiles) -> Iterator[ChaosFleet]:
    folder: Path = tmp_path_factory.mktemp("streams")
    with ChaosFleet("l7", folder, certificate, servers=3, server_options=QUICK) as running:
        yield running


@contextmanager
def working(work: Callable[[ChaosFleet, Watched], None], fleet: ChaosFleet) -> Iterator[Watched]:
    """The work on a thread of its own."""
    watched = Watched()

    def run() -> None:
        try:
            work(fleet, watched)
        except BaseException as error:
            watched.problems.append(repr(error))

    thread = threading.Thread(target=run, name="work")
    thread.start()
    try:
        yield watched
    finally:
        watched.stop = True
        thread.join()


@pytest.mark.parametrize("work", [stream, stream_asynchronously, call_for_long_answers])
def test_work_outlives_its_servers(fleet: ChaosFleet, work: Callable[[ChaosFleet, Watched], None]) -> None:
    """Whichever server does the work is killed again and again, and every query is answered rightly."""
    with working(work, fleet) as watched:
        for _ in range(KILLS):
            goal = watched.answered + OUTCOMES_BETWEEN_KILLS
            wait_until(lambda: watched.answered >= goal or watched.problems, "answers")  # noqa: B023
            victim = next(server for server in fleet.servers if server.name == watched.server)
            victim.kill()
            victim.restart()
        goal = watched.answered + OUTCOMES_BETWEEN_KILLS
        wait_until(lambda: watched.answered >= goal or watched.problems, "answers after the last kill")
    assert not watched.problems, watched.problems[:3]
