"""Infinity: the superset's request with both `raw_scores` and `model`, and documents echoed as strings."""

from collections.abc import Sequence
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from server.reranker import Ranking, RerankQuery
from server.transport.http.dialects.base import Answer, Dialect, Facts, Usage, total_tokens
from server.transport.http.dialects.superset import SupersetRequest, query_of

__all__ = ["INFINITY"]


class InfinityResult(msgspec.Struct):
    """One document's place."""

    index: int
    relevance_score: float
    document: str | UnsetType = UNSET


class InfinityAnswer(Answer):
    """Best first."""

    object: Literal["rerank"]
    id: str
    created: int
    model: str
    usage: Usage
    results: list[InfinityResult]


def _queries(request: SupersetRequest, facts: Facts) -> list[RerankQuery]:
    return [query_of(request, facts)]


def _render(
    request: SupersetRequest, queries: Sequence[RerankQuery], rankings: Sequence[Ranking], facts: Facts
) -> InfinityAnswer:
    echo = facts.return_documents if request.return_documents is None else request.return_documents
    texts = queries[0].documents
    tokens = total_tokens(rankings)
    return InfinityAnswer(
        object="rerank",
        id=facts.request_id,
        created=facts.created,
        model=facts.model,
        usage=Usage(tokens, tokens),
        results=[
            InfinityResult(ranked.index, ranked.score, texts[ranked.index] if echo else UNSET)
            for ranked in rankings[0].results
        ],
    )


INFINITY = Dialect("infinity", SupersetRequest, InfinityAnswer, _queries, _render)
