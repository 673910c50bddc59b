"""NVIDIA NIM: passages in, logits out."""

from collections.abc import Sequence
from typing import Literal

import msgspec

from server.reranker import Ranking, RerankQuery, Truncation
from server.transport.http.dialects.base import Answer, Dialect, Facts, QueryText, Usage, total_tokens
from server.transport.http.dialects.texts import within_limit

__all__ = ["NIM"]


class Question(msgspec.Struct):
    """The query, in an object of its own."""

    text: QueryText


class Passage(msgspec.Struct):
    """A passage, in an object of its own."""

    text: str


class NimRequest(msgspec.Struct):
    """A query and its passages."""

    query: Question
    passages: list[Passage]
    model: str | None = None
    truncate: Literal["NONE", "END", "START"] | None = None


class NimRank(msgspec.Struct):
    """One passage's place."""

    index: int
    logit: float


class NimAnswer(Answer):
    """Best first."""

    rankings: list[NimRank]
    usage: Usage


def _queries(request: NimRequest, facts: Facts) -> list[RerankQuery]:
    return [
        RerankQuery(
            query=request.query.text,
            documents=[passage.text for passage in within_limit(request.passages, facts, field="passages")],
            raw_scores=True,
            # Only ends are cut here; who wants the start cut is refused once something must be.
            truncation=Truncation.ERROR if request.truncate in ("NONE", "START") else Truncation.END,
            model=request.model or "",
        )
    ]


def _render(
    request: NimRequest, queries: Sequence[RerankQuery], rankings: Sequence[Ranking], facts: Facts
) -> NimAnswer:
    tokens = total_tokens(rankings)
    return NimAnswer(
        rankings=[NimRank(ranked.index, ranked.score) for ranked in rankings[0].results],
        usage=Usage(tokens, tokens),
    )


NIM = Dialect("nim", NimRequest, NimAnswer, _queries, _render)
