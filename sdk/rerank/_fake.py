"""Clients for tests of code that reranks: no server, no network, the same behaviour.

They share everything with the real clients but the wire: arguments are checked, objects
mapped and results built by the same code, so what passes here passes there.
"""

import math
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from rerank._async_client import AsyncRerankClient
from rerank._client import RerankClient
from rerank._health import ServingStatus
from rerank._options import RerankOptions
from rerank._plan import Plan, Reply
from rerank._settings import Call, ClientSettings, client_settings
from rerank._stream import Outcome, Query, StreamSession
from rerank._type_variables import K, T
from rerank.v1 import rerank_pb2 as wire

__all__ = ["AsyncFakeRerankClient", "FakeCall", "FakeRerankClient", "Scorer"]


Scorer = Callable[[str, str], float]

FAKE_SERVER = "fake"
UNLIMITED = 2**31 - 1


@dataclass(frozen=True, slots=True)
class FakeCall:
    """One query that a fake client was asked: the texts as they would have been sent."""

    query: str
    documents: tuple[str, ...]
    options: RerankOptions


def overlap_score(query: str, document: str) -> float:
    """Return the share of the query's words that the document holds: 0.0 to 1.0.

    Example:
        >>> overlap_score("what do pandas eat", "Pandas eat bamboo")
        0.5
    """
    words = set(query.lower().split())
    return len(words & set(document.lower().split())) / len(words) if words else 0.0


class FakeRerankClient(RerankClient):
    """A RerankClient without a server, for tests of your own code.

    `scorer(query, text)` returns the relevance score of one document, in [0, 1]; by
    default it is the share of the query's words that the document holds. A scorer that
    raises a RerankError makes the call fail with it. `calls` records what was asked.

    Example:
        client = FakeRerankClient(lambda query, text: 1.0 if "bamboo" in text else 0.0)
        assert client.rerank("pandas?", ["cats", "bamboo"]).documents == ("bamboo", "cats")
        assert client.calls[0].query == "pandas?"
    """

    def __init__(self, scorer: Scorer = overlap_score, *, model: str = "fake") -> None:
        self._server = _FakeServer(scorer, model)
        self._open(_fake_settings(), _FakeTransport(self._server), None)

    @property
    def calls(self) -> list[FakeCall]:
        """What this client was asked, in order."""
        return self._server.calls

    def __del__(self) -> None:
        """There is nothing to leak."""


class AsyncFakeRerankClient(AsyncRerankClient):
    """An AsyncRerankClient without a server; see FakeRerankClient.

    Example:
        client = AsyncFakeRerankClient(lambda query, text: 1.0 if "bamboo" in text else 0.0)
        assert (await client.rerank("pandas?", ["cats", "bamboo"])).documents == ("bamboo", "cats")
    """

    def __init__(self, scorer: Scorer = overlap_score, *, model: str = "fake") -> None:
        self._server = _FakeServer(scorer, model)
        self._open(_fake_settings(), _AsyncFakeTransport(self._server), None)

    @property
    def calls(self) -> list[FakeCall]:
        """What this client was asked, in order."""
        return self._server.calls


class _FakeServer:
    """Answers plans as a server would answer their requests."""

    def __init__(self, scorer: Scorer, model: str) -> None:
        self.calls: list[FakeCall] = []
        self._scorer = scorer
        self._model = model

    def answer(self, plan: Plan[Any]) -> list[Reply]:
        return [Reply(self._rerank(request, plan.options), (FAKE_SERVER,)) for request in plan.requests]

    def describe(self) -> wire.GetModelResponse:
        return wire.GetModelResponse(
            model=self._model,
            revision="fake",
            architecture="Fake",
            max_tokens=UNLIMITED,
            execution="fake",
            accepts_instruction=True,
            limits=wire.Limits(
                max_documents=UNLIMITED,
                max_request_bytes=UNLIMITED,
                max_query_bytes=UNLIMITED,
                max_windows_per_document=UNLIMITED,
            ),
            score_range=wire.ScoreRange(minimum=0.0, maximum=1.0),
            server=FAKE_SERVER,
            server_version="0",
            fingerprint=self._model,
        )

    def _rerank(self, request: wire.RerankRequest, options: RerankOptions) -> wire.RerankResponse:
        self.calls.append(FakeCall(request.query, tuple(request.documents), options))
        scores = [self._score(request.query, text) for text in request.documents]
        best_first = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
        return wire.RerankResponse(
            results=[
                wire.RankedDocument(
                    index=index,
                    relevance_score=_logit(scores[index]) if request.raw_scores else scores[index],
                    tokens=_count_words(request.query) + _count_words(request.documents[index]),
                )
                for index in best_first[: request.top_n or len(best_first)]
            ],
            model=self._model,
            fingerprint=self._model,
            usage=wire.Usage(
                computed_pairs=len(scores),
                computed_tokens=sum(
                    _count_words(request.query) + _count_words(text) for text in request.documents
                ),
            ),
        )

    def _score(self, query: str, text: str) -> float:
        score = float(self._scorer(query, text))
        if not 0.0 <= score <= 1.0:
            raise ValueError(f"scorer: must return a score in [0, 1], not {score}")
        return score


class _FakeTransport:
    """A fake server behind the interface of the blocking transport."""

    def __init__(self, server: _FakeServer) -> None:
        self._server = server

    def gather(self, plan: Plan[Any], call: Call) -> list[Reply]:
        return self._server.answer(plan)

    def stream(self, session: StreamSession[K, T], queries: Iterable[Query[K, T]]) -> Iterator[Outcome[K, T]]:
        for query in queries:
            yield session.ask_at_once(query, self._server.answer)

    def get_model(self, call: Call) -> wire.GetModelResponse:
        return self._server.describe()

    def health(self, call: Call) -> ServingStatus:
        return ServingStatus.SERVING

    def close(self) -> None:
        pass


class _AsyncFakeTransport:
    """A fake server behind the interface of the asynchronous transport."""

    is_open = False

    def __init__(self, server: _FakeServer) -> None:
        self._server = server

    async def gather(self, plan: Plan[Any], call: Call) -> list[Reply]:
        return self._server.answer(plan)

    async def stream(
        self, session: StreamSession[K, T], queries: Iterable[Query[K, T]] | AsyncIterable[Query[K, T]]
    ) -> AsyncGenerator[Outcome[K, T], None]:
        if isinstance(queries, AsyncIterable):
            async for query in queries:
                yield session.ask_at_once(query, self._server.answer)
        else:
            for query in queries:
                yield session.ask_at_once(query, self._server.answer)

    async def get_model(self, call: Call) -> wire.GetModelResponse:
        return self._server.describe()

    async def health(self, call: Call) -> ServingStatus:
        return ServingStatus.SERVING

    async def close(self) -> None:
        pass


def _fake_settings() -> ClientSettings:
    # No limits: a call is one request, so scores come back as the scorer gave them.
    return client_settings("localhost:0", max_request_bytes=UNLIMITED, max_request_documents=UNLIMITED)


def _logit(score: float) -> float:
    if score in (0.0, 1.0):
        return math.copysign(math.inf, score - 0.5)
    return math.log(score / (1.0 - score))


def _count_words(text: str) -> int:
    return len(text.split())
