"""Weaviate's reranker-transformers module: every document's score, in the order of the request."""

from collections.abc import Sequence

import msgspec

from server.reranker import Ranking, RerankQuery
from server.transport.http.dialects.base import Answer, Dialect, Facts, QueryText
from server.transport.http.dialects.texts import within_limit
from server.transport.http.errors import HttpError

__all__ = ["WEAVIATE"]


class WeaviateRequest(msgspec.Struct):
    """A query and its documents; `property` names where in Weaviate they come from."""

    query: QueryText
    documents: list[str]
    property: str | None


class DocumentScore(msgspec.Struct):
    """One document with its score."""

    document: str
    score: float


class WeaviateAnswer(Answer):
    """In the order of the request."""

    query: str
    property: str
    scores: list[DocumentScore]


def _queries(request: WeaviateRequest, facts: Facts) -> list[RerankQuery]:
    return [RerankQuery(query=request.query, documents=within_limit(request.documents, facts))]


def _render(
    request: WeaviateRequest, queries: Sequence[RerankQuery], rankings: Sequence[Ranking], facts: Facts
) -> WeaviateAnswer:
    in_order = sorted(rankings[0].results, key=lambda ranked: ranked.index)
    return WeaviateAnswer(
        query=request.query,
        property=request.property or "",
        scores=[DocumentScore(request.documents[ranked.index], ranked.score) for ranked in in_order],
    )


def _error(error: HttpError) -> object:
    return {"error": error.message}


WEAVIATE = Dialect("weaviate", WeaviateRequest, WeaviateAnswer, _queries, _render, _error)
