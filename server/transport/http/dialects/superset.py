"""Plain, Cohere v1 and v2, Jina and vLLM: they ask alike, and one answer satisfies all.

`{"query", "documents"}` and no model is the plain format; its answer comes as
`ranked_results` beside the fields of the others.
"""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from server.reranker import Priority, Ranking, RerankQuery, Truncation
from server.transport.http.dialects.base import (
    Answer,
    Count,
    Dialect,
    DocumentObject,
    Facts,
    FailedDocument,
    QueryText,
    Usage,
    failed_documents,
    total_tokens,
)
from server.transport.http.dialects.texts import document_texts

__all__ = ["SUPERSET", "SupersetRequest", "query_of"]

# Cohere bills a search by the hundred documents.
DOCUMENTS_PER_SEARCH_UNIT = 100
_TRUNCATION = {
    None: Truncation.END,
    "end": Truncation.END,
    "error": Truncation.ERROR,
    "chunk": Truncation.CHUNK,
}


class SupersetRequest(msgspec.Struct):
    """A query and its documents."""

    query: QueryText
    documents: list[str | DocumentObject]
    model: str | None = None
    top_n: Count | None = None
    return_documents: bool | None = None
    raw_scores: bool | None = None
    max_tokens_per_doc: Count | None = None
    max_chunks_per_doc: Count | None = None
    rank_fields: list[str] | None = None
    truncate_prompt_tokens: int | None = None
    truncation: Literal["end", "error", "chunk"] | None = None
    priority: Count | None = None
    instruction: str | None = None
    details: bool | None = None


class Result(msgspec.Struct):
    """One document's place."""

    index: int
    relevance_score: float
    document: dict[str, Any] | UnsetType = UNSET
    truncated: bool | UnsetType = UNSET
    tokens: int | UnsetType = UNSET
    span: tuple[int, int] | UnsetType = UNSET


class RankedText(msgspec.Struct):
    """One document's place in the plain format."""

    text: str
    score: float


class ApiVersion(msgspec.Struct):
    """Which of Cohere's interfaces answers."""

    version: str


class BilledUnits(msgspec.Struct):
    """What Cohere would bill."""

    search_units: float


class Tokens(msgspec.Struct):
    """Tokens as Cohere counts them."""

    input_tokens: float
    output_tokens: float = 0.0


class Meta(msgspec.Struct):
    """Cohere's accounting."""

    api_version: ApiVersion
    billed_units: BilledUnits
    tokens: Tokens


class Timings(msgspec.Struct):
    """Where the time went, in milliseconds."""

    queue_ms: float
    tokenise_ms: float
    compute_ms: float
    total_ms: float


class SupersetAnswer(Answer):
    """Best first, for every reader."""

    ranked_results: list[RankedText] | UnsetType
    id: str
    object: Literal["rerank"]
    created: int
    model: str
    results: list[Result]
    usage: Usage
    meta: Meta
    failures: list[FailedDocument] | UnsetType = UNSET
    timings: Timings | UnsetType = UNSET


def query_of(request: SupersetRequest, facts: Facts) -> RerankQuery:
    """The domain's query."""
    truncation = _TRUNCATION[request.truncation]
    if request.truncation is None and (request.max_chunks_per_doc or 0) > 1:
        truncation = Truncation.CHUNK
    return RerankQuery(
        query=request.query,
        documents=document_texts(request.documents, facts, rank_fields=request.rank_fields),
        top_n=request.top_n or 0,
        raw_scores=bool(request.raw_scores),
        truncation=truncation,
        # vLLM's -1 is the model's own limit.
        max_tokens_per_document=request.max_tokens_per_doc or max(0, request.truncate_prompt_tokens or 0),
        model=request.model or "",
        # Cohere's 0 is the highest, and the default.
        priority=Priority.BATCH if request.priority else Priority.INTERACTIVE,
        instruction=request.instruction or "",
    )


def _queries(request: SupersetRequest, facts: Facts) -> list[RerankQuery]:
    return [query_of(request, facts)]


def _render(
    request: SupersetRequest, queries: Sequence[RerankQuery], rankings: Sequence[Ranking], facts: Facts
) -> SupersetAnswer:
    [ranking] = rankings
    texts = queries[0].documents
    echo = facts.return_documents if request.return_documents is None else request.return_documents
    results = []
    for ranked in ranking.results:
        result = Result(ranked.index, ranked.score)
        if echo:
            result.document = _echo(request.documents[ranked.index], texts[ranked.index])
        if request.details:
            result.truncated, result.tokens = ranked.truncated, ranked.tokens
            result.span = UNSET if ranked.span is None else ranked.span
        results.append(result)
    tokens = total_tokens(rankings)
    answer = SupersetAnswer(
        ranked_results=UNSET if request.model is not None else _plain(texts, ranking),
        id=facts.request_id,
        object="rerank",
        created=facts.created,
        model=facts.model,
        results=results,
        usage=Usage(prompt_tokens=tokens, total_tokens=tokens),
        meta=Meta(
            api_version=ApiVersion("2" if "/v2/" in facts.path else "1"),
            billed_units=BilledUnits(float(-(-len(request.documents) // DOCUMENTS_PER_SEARCH_UNIT))),
            tokens=Tokens(float(tokens)),
        ),
        failures=failed_documents(queries, rankings) or UNSET,
    )
    if request.details:
        timings = ranking.timings
        answer.timings = Timings(
            queue_ms=timings.queue_s * 1000,
            tokenise_ms=timings.tokenise_s * 1000,
            compute_ms=timings.compute_s * 1000,
            total_ms=timings.total_s * 1000,
        )
    return answer


def _plain(texts: Sequence[str], ranking: Ranking) -> list[RankedText]:
    return [RankedText(texts[ranked.index], ranked.score) for ranked in ranking.results]


def _echo(document: str | dict[str, Any], text: str) -> dict[str, Any]:
    """The caller's own object; `text` is what strict readers insist on."""
    return {"text": text} if isinstance(document, str) else {"text": text, **document}


SUPERSET = Dialect("superset", SupersetRequest, SupersetAnswer, _queries, _render)
