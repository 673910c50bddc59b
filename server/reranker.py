"""The use case: one query and its documents in, a ranking out.

Validates what the caller sent, asks the engine for logits, and turns them into an
order and scores. Knows no protocol: every transport calls `Reranker.rerank`.
"""

import asyncio
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum

from server.engine.engine import Engine
from server.engine.held_bytes import HeldBytes
from server.engine.pair_cache import PairScore
from server.engine.pairs import Failure
from server.engine.requests import ScoreRequest
from server.engine.scheduler import Priority
from server.errors import Draining, InvalidRequest, ModelNotServed, ScoringFailed, TooLarge
from server.models.base import ModelInfo, Windowing

__all__ = [
    "Failure",
    "Limits",
    "Priority",
    "RankedDocument",
    "Ranking",
    "RerankQuery",
    "Reranker",
    "Timings",
    "Truncation",
    "Usage",
    "sigmoid",
]

# Of one request with many: enough to fill batches, few enough that others get in between.
QUERIES_AT_ONCE = 64


class Truncation(Enum):
    """What happens to a pair that is too long for the model."""

    END = "end"
    """Cut the end of the document, never the query."""
    ERROR = "error"
    """Refuse the request."""
    CHUNK = "chunk"
    """Score overlapping windows and take the best."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one request."""

    max_documents: int
    max_query_bytes: int
    max_request_bytes: int
    max_windows_per_document: int
    max_open_bytes: int = 512 * 1024 * 1024
    """Memory for the texts of all requests that are worked on."""


def _nobody(tokens: int) -> None:
    """Charges nobody."""


@dataclass(frozen=True, slots=True)
class RerankQuery:
    """What a caller asks, whatever the protocol it came by."""

    query: str
    documents: Sequence[str]
    top_n: int = 0
    """0 is all."""
    raw_scores: bool = False
    truncation: Truncation = Truncation.END
    max_tokens_per_document: int = 0
    model: str = ""
    priority: Priority = Priority.INTERACTIVE
    instruction: str = ""
    deadline_s: float = math.inf
    """On the monotonic clock."""
    charge: Callable[[int], None] = _nobody
    """Hears of tokens that were computed for this query, whatever becomes of the caller."""


@dataclass(frozen=True, slots=True)
class RankedDocument:
    """One document's place; `index` is its position in the request."""

    index: int
    score: float
    truncated: bool
    tokens: int
    span: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Usage:
    """What a request cost."""

    computed_tokens: int
    computed_pairs: int
    cached_pairs: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Where a request's time went, in seconds."""

    queue_s: float
    tokenise_s: float
    compute_s: float
    total_s: float


@dataclass(frozen=True, slots=True)
class Ranking:
    """The answer, best first."""

    results: Sequence[RankedDocument]
    usage: Usage
    timings: Timings
    failures: Sequence[tuple[int, Failure]] = field(default=())
    """(position in the request, why) of documents that could not be scored."""


class Reranker:
    """Ranks documents with one engine, within the limits of one server."""

    def __init__(self, engine: Engine, info: ModelInfo, limits: Limits) -> None:
        self._engine = engine
        self.info = info
        """The model that scores."""
        self.limits = limits
        """The bounds of one request."""
        self._draining = False
        self._open_texts = HeldBytes(
            limits.max_open_bytes, what="are worked on", option="--open-requests-mib"
        )

    def drain(self) -> None:
        """Take no new queries; those that were accepted go on."""
        self._draining = True

    async def rerank(self, query: RerankQuery) -> Ranking:
        """Rank the documents of a query; raises like `rerank_all`."""
        [ranking] = await self.rerank_all([query])
        return ranking

    async def rerank_all(self, queries: Sequence[RerankQuery]) -> list[Ranking]:
        """Rank the documents of all queries of one request, whose limits hold for their sum.

        Documents that can't be scored are reported in their ranking's `failures`.

        Raises:
            InvalidRequest, TooLarge, ModelNotServed: the request must change.
            Overloaded, Draining, NotReady: not now, or not here.
            DeadlineExceeded: too late.
            ScoringFailed: the model failed on every document of every query.
        """
        if self._draining:
            raise Draining("this server is shutting down; call another one")
        self._validate_sum(queries)
        for query in queries:
            self._validate(query)
        with self._open_texts.hold(sum(_text_bytes(query) for query in queries)):
            if len(queries) == 1:
                rankings = [await self._rank(queries[0])]
            else:
                rankings = await self._rank_some_at_once(queries)
        failures = [failure for ranking in rankings for _, failure in ranking.failures]
        if failures and len(failures) == sum(len(query.documents) for query in queries):
            raise ScoringFailed(
                f"none of the {len(failures)} documents could be scored: {failures[0].reason}"
            )
        return rankings

    async def _rank_some_at_once(self, queries: Sequence[RerankQuery]) -> list[Ranking]:
        rankings: list[Ranking | None] = [None] * len(queries)
        left: Iterator[tuple[int, RerankQuery]] = iter(enumerate(queries))

        async def work() -> None:
            for position, query in left:
                rankings[position] = await self._rank(query)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(QUERIES_AT_ONCE, len(queries))):
                    group.create_task(work())
        except BaseExceptionGroup as errors:
            # One answer can tell one error, and the first is as good as any.
            raise errors.exceptions[0] from None
        return [ranking for ranking in rankings if ranking is not None]

    async def _rank(self, query: RerankQuery) -> Ranking:
        started_s = time.monotonic()
        scored = await self._engine.score(
            ScoreRequest(
                query=query.query,
                documents=query.documents,
                windowing=self._windowing(query),
                instruction=query.instruction,
                refuse_truncated=query.truncation is Truncation.ERROR,
                priority=query.priority,
                deadline_s=query.deadline_s,
                charge=query.charge,
            )
        )
        results, failures = _ranked(scored.outcomes, top_n=query.top_n, raw_scores=query.raw_scores)
        return Ranking(
            results=results,
            failures=failures,
            usage=Usage(scored.computed_tokens, scored.computed_pairs, scored.cached_pairs),
            timings=Timings(
                scored.queue_s, scored.tokenise_s, scored.compute_s, time.monotonic() - started_s
            ),
        )

    def _validate_sum(self, queries: Sequence[RerankQuery]) -> None:
        documents = sum(len(query.documents) for query in queries)
        if documents > self.limits.max_documents:
            raise TooLarge(
                "documents",
                "the request",
                actual=documents,
                limit=self.limits.max_documents,
                unit="documents",
            )

    def _validate(self, query: RerankQuery) -> None:
        # Sizes first: even looking for something else than blanks takes as long as the text is.
        self._check_bytes("query", "the query", query.query)
        if not query.query.strip():
            raise InvalidRequest("query", "must not be blank")
        if query.model and query.model != self.info.model_id:
            raise ModelNotServed(query.model, self.info.model_id)
        if query.instruction and not self.info.accepts_instruction:
            raise InvalidRequest("instruction", f"{self.info.model_id} takes none; leave it empty")
        self._check_bytes("instruction", "the instruction", query.instruction)

    def _check_bytes(self, field: str, what: str, text: str) -> None:
        limit = self.limits.max_query_bytes
        # Each character is at least one byte, and counting all bytes copies the text.
        size = None if len(text) > limit else len(text.encode("utf-8", "surrogatepass"))
        if size is None or size > limit:
            raise TooLarge(field, what, actual=size, limit=limit, unit="bytes")

    def _windowing(self, query: RerankQuery) -> Windowing:
        chunked = query.truncation is Truncation.CHUNK
        return Windowing(
            # A bound beyond what the model reads says nothing, and must not split the cache.
            max_document_tokens=min(query.max_tokens_per_document, self.info.max_tokens),
            max_windows=self.limits.max_windows_per_document if chunked else 1,
        )


def _text_bytes(query: RerankQuery) -> int:
    """Memory that the query's texts take: up to four bytes for each character."""
    return sys.getsizeof(query.query) + sum(map(sys.getsizeof, query.documents))


def sigmoid(logit: float) -> float:
    """1 / (1 + exp(-logit)) in float64, for logits of any size."""
    if logit >= 0:
        return 1.0 / (1.0 + math.exp(-logit))
    grown = math.exp(logit)
    return grown / (1.0 + grown)


def _ranked(
    outcomes: Sequence[PairScore | Failure], *, top_n: int, raw_scores: bool
) -> tuple[list[RankedDocument], list[tuple[int, Failure]]]:
    scores = [(index, score) for index, score in enumerate(outcomes) if isinstance(score, PairScore)]
    failures = [(index, failure) for index, failure in enumerate(outcomes) if isinstance(failure, Failure)]
    # By the logit, since sigmoids of different logits can round to the same number; sorting is stable,
    # so ties keep the order of the request.
    scores.sort(key=lambda item: -item[1].logit)
    results = [
        RankedDocument(
            index=index,
            score=score.logit if raw_scores else sigmoid(score.logit),
            truncated=score.truncated,
            tokens=score.tokens,
            span=score.span,
        )
        for index, score in scores[: top_n or None]
    ]
    return results, failures
