"""Hugging Face's text-embeddings-inference: a bare list, best first, and errors in their own shape."""

from collections.abc import Sequence
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from server.reranker import Ranking, RerankQuery
from server.transport.http.dialects.base import Dialect, Facts, QueryText
from server.transport.http.dialects.texts import within_limit
from server.transport.http.errors import HttpError
from server.transport.tei_facts import tei_truncation

__all__ = ["TEI"]


class TeiRequest(msgspec.Struct):
    """A query and its texts; TEI knows no top_n."""

    query: QueryText
    texts: list[str]
    truncate: bool | None = None
    truncation_direction: Literal["Left", "Right", "left", "right"] | None = None
    raw_scores: bool | None = None
    return_text: bool | None = None


class TeiRank(msgspec.Struct):
    """One text's place."""

    index: int
    score: float
    text: str | UnsetType = UNSET


def _queries(request: TeiRequest, facts: Facts) -> list[RerankQuery]:
    return [
        RerankQuery(
            query=request.query,
            documents=within_limit(request.texts, facts, field="texts"),
            raw_scores=bool(request.raw_scores),
            truncation=tei_truncation(
                # /info says auto_truncate, so silence means yes.
                truncate=request.truncate is not False,
                left=(request.truncation_direction or "").lower() == "left",
            ),
        )
    ]


def _render(
    request: TeiRequest, queries: Sequence[RerankQuery], rankings: Sequence[Ranking], facts: Facts
) -> list[TeiRank]:
    echo = facts.return_documents if request.return_text is None else request.return_text
    return [
        TeiRank(ranked.index, ranked.score, request.texts[ranked.index] if echo else UNSET)
        for ranked in rankings[0].results
    ]


def _error(error: HttpError) -> object:
    return {"error": error.message, "error_type": error.tei_type}


TEI = Dialect("tei", TeiRequest, list[TeiRank], _queries, _render, _error)
