"""Mixedbread: `input` and `top_k` in, `data` with `score` out."""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from server.reranker import Ranking, RerankQuery
from server.transport.http.dialects.base import (
    Answer,
    Count,
    Dialect,
    DocumentObject,
    Facts,
    QueryText,
    Usage,
    total_tokens,
)
from server.transport.http.dialects.texts import document_texts

__all__ = ["MIXEDBREAD"]


class MixedbreadRequest(msgspec.Struct):
    """A query and its input."""

    query: QueryText
    input: list[str | DocumentObject]
    model: str | None = None
    top_k: Count | None = None
    rank_fields: list[str] | None = None
    return_input: bool | None = None


class MixedbreadResult(msgspec.Struct):
    """One input's place."""

    index: int
    score: float
    object: Literal["rank_result"] = "rank_result"
    input: str | dict[str, Any] | UnsetType = UNSET


class MixedbreadAnswer(Answer):
    """Best first."""

    object: Literal["list"]
    model: str
    usage: Usage
    data: list[MixedbreadResult]
    top_k: int
    return_input: bool


def _queries(request: MixedbreadRequest, facts: Facts) -> list[RerankQuery]:
    return [
        RerankQuery(
            query=request.query,
            documents=document_texts(request.input, facts, field="input", rank_fields=request.rank_fields),
            top_n=request.top_k or 0,
            model=request.model or "",
        )
    ]


def _render(
    request: MixedbreadRequest, queries: Sequence[RerankQuery], rankings: Sequence[Ranking], facts: Facts
) -> MixedbreadAnswer:
    echo = facts.return_documents if request.return_input is None else request.return_input
    tokens = total_tokens(rankings)
    return MixedbreadAnswer(
        object="list",
        model=facts.model,
        usage=Usage(tokens, tokens),
        data=[
            MixedbreadResult(ranked.index, ranked.score, input=request.input[ranked.index] if echo else UNSET)
            for ranked in rankings[0].results
        ],
        top_k=request.top_k or len(request.input),
        return_input=echo,
    )


MIXEDBREAD = Dialect("mixedbread", MixedbreadRequest, MixedbreadAnswer, _queries, _render)
