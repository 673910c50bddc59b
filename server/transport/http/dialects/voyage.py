"""Voyage: `top_k`, a boolean `truncation`, and `data` instead of `results`."""

from collections.abc import Sequence
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from server.reranker import Ranking, RerankQuery, Truncation
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

__all__ = ["VOYAGE"]


class VoyageRequest(msgspec.Struct):
    """A query and its documents, with `top_k` or `truncation`."""

    query: QueryText
    documents: list[str | DocumentObject]
    model: str | None = None
    top_k: Count | None = None
    truncation: bool | None = None
    return_documents: bool | None = None


class VoyageResult(msgspec.Struct):
    """One document's place."""

    index: int
    relevance_score: float
    document: str | UnsetType = UNSET


class VoyageAnswer(Answer):
    """Best first."""

    object: Literal["list"]
    data: list[VoyageResult]
    model: str
    usage: Usage


def _queries(request: VoyageRequest, facts: Facts) -> list[RerankQuery]:
    return [
        RerankQuery(
            query=request.query,
            documents=document_texts(request.documents, facts),
            top_n=request.top_k or 0,
            truncation=Truncation.ERROR if request.truncation is False else Truncation.END,
            model=request.model or "",
        )
    ]


def _render(
    request: VoyageRequest, queries: Sequence[RerankQuery], rankings: Sequence[Ranking], facts: Facts
) -> VoyageAnswer:
    echo = facts.return_documents if request.return_documents is None else request.return_documents
    texts = queries[0].documents
    tokens = total_tokens(rankings)
    return VoyageAnswer(
        object="list",
        data=[
            VoyageResult(ranked.index, ranked.score, texts[ranked.index] if echo else UNSET)
            for ranked in rankings[0].results
        ],
        model=facts.model,
        usage=Usage(tokens, tokens),
    )


VOYAGE = Dialect("voyage", VoyageRequest, VoyageAnswer, _queries, _render)
