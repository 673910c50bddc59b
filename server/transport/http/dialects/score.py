"""vLLM's /score: pairs of texts, scored in the order of the request.

One text against many is one query; many against as many are scored pair by pair.
"""

from collections.abc import Sequence
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from server.errors import InvalidRequest
from server.reranker import Ranking, RerankQuery
from server.transport.http.dialects.base import (
    Answer,
    Dialect,
    Facts,
    FailedDocument,
    Usage,
    failed_documents,
    total_tokens,
)
from server.transport.http.dialects.texts import within_limit

__all__ = ["SCORE"]


class ScoreRequest(msgspec.Struct):
    """`text_1` and `text_2`, or `queries` and `documents`: each one text or a list."""

    text_1: str | list[str] | None = None
    text_2: str | list[str] | None = None
    queries: str | list[str] | None = None
    documents: str | list[str] | None = None
    model: str | None = None
    truncate_prompt_tokens: int | None = None


class Score(msgspec.Struct):
    """One pair's score."""

    index: int
    score: float
    object: Literal["score"] = "score"


class ScoreAnswer(Answer):
    """In the order of the request."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Score]
    usage: Usage
    failures: list[FailedDocument] | UnsetType = UNSET


def _queries(request: ScoreRequest, facts: Facts) -> list[RerankQuery]:
    left, left_name = _texts(request.text_1, request.queries, "text_1", "queries", facts)
    right, right_name = _texts(request.text_2, request.documents, "text_2", "documents", facts)
    if len(left) == 1:
        return [_query(request, left[0], right)]
    if len(left) != len(right):
        raise InvalidRequest(
            left_name,
            f"has {len(left)} texts for {len(right)} of {right_name}; send one, or as many as there",
        )
    return [_query(request, one, [other]) for one, other in zip(left, right, strict=True)]


def _query(request: ScoreRequest, query: str, documents: Sequence[str]) -> RerankQuery:
    return RerankQuery(
        query=query,
        documents=documents,
        max_tokens_per_document=max(0, request.truncate_prompt_tokens or 0),
        model=request.model or "",
    )


def _texts(
    text: str | list[str] | None,
    plural: str | list[str] | None,
    name: str,
    plural_name: str,
    facts: Facts,
) -> tuple[Sequence[str], str]:
    """One side of the pairs, and the name under which it was sent."""
    given, given_name = (text, name) if text is not None else (plural, plural_name)
    if given is None:
        raise InvalidRequest(name, f"is missing; send {name}, or {plural_name}")
    texts = [given] if isinstance(given, str) else given
    if not texts:
        raise InvalidRequest(given_name, "is empty; send at least one text")
    return within_limit(texts, facts, field=given_name), given_name


def _render(
    request: ScoreRequest, queries: Sequence[RerankQuery], rankings: Sequence[Ranking], facts: Facts
) -> ScoreAnswer:
    scores = []
    start = 0
    for query, ranking in zip(queries, rankings, strict=True):
        scores += [Score(start + ranked.index, ranked.score) for ranked in ranking.results]
        start += len(query.documents)
    tokens = total_tokens(rankings)
    return ScoreAnswer(
        id=facts.request_id,
        object="list",
        created=facts.created,
        model=facts.model,
        data=sorted(scores, key=lambda score: score.index),
        usage=Usage(tokens, tokens),
        failures=failed_documents(queries, rankings) or UNSET,
    )


SCORE = Dialect("score", ScoreRequest, ScoreAnswer, _queries, _render)
