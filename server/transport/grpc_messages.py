"""rerank.v1 messages to the domain and back."""

import math
import time
from typing import TypeVar

from google.protobuf.duration_pb2 import Duration
from rerank.v1 import rerank_pb2

from server import __version__
from server.errors import InvalidRequest
from server.models.base import ModelInfo
from server.reranker import Limits, Priority, Ranking, RerankQuery, Truncation

__all__ = ["model_message", "query_from_message", "ranking_message"]

_TRUNCATION = {
    rerank_pb2.TRUNCATION_UNSPECIFIED: Truncation.END,
    rerank_pb2.TRUNCATION_END: Truncation.END,
    rerank_pb2.TRUNCATION_ERROR: Truncation.ERROR,
    rerank_pb2.TRUNCATION_CHUNK: Truncation.CHUNK,
}
_PRIORITY = {
    rerank_pb2.PRIORITY_UNSPECIFIED: Priority.INTERACTIVE,
    rerank_pb2.PRIORITY_INTERACTIVE: Priority.INTERACTIVE,
    rerank_pb2.PRIORITY_BATCH: Priority.BATCH,
}
K = TypeVar("K")
V = TypeVar("V")


def query_from_message(message: rerank_pb2.RerankRequest, time_remaining_s: float | None) -> RerankQuery:
    """Read a request; enum numbers of a newer contract are refused rather than guessed at."""
    return RerankQuery(
        query=message.query,
        documents=list(message.documents),
        top_n=message.top_n,
        raw_scores=message.raw_scores,
        truncation=_known(_TRUNCATION, message.truncation, "truncation"),
        max_tokens_per_document=message.max_tokens_per_document,
        model=message.model,
        priority=_known(_PRIORITY, message.priority, "priority"),
        instruction=message.instruction,
        deadline_s=math.inf if time_remaining_s is None else time.monotonic() + time_remaining_s,
    )


def ranking_message(
    query: RerankQuery, ranking: Ranking, info: ModelInfo, *, return_documents: bool
) -> rerank_pb2.RerankResponse:
    """Write an answer; documents are echoed from the query, since each look at a message copies them."""
    response = rerank_pb2.RerankResponse(
        model=info.model_id,
        fingerprint=info.fingerprint,
        usage=rerank_pb2.Usage(
            computed_tokens=ranking.usage.computed_tokens,
            computed_pairs=ranking.usage.computed_pairs,
            cached_pairs=ranking.usage.cached_pairs,
        ),
        timings=rerank_pb2.Timings(
            queue=_duration(ranking.timings.queue_s),
            tokenise=_duration(ranking.timings.tokenise_s),
            compute=_duration(ranking.timings.compute_s),
            total=_duration(ranking.timings.total_s),
        ),
        failures=[
            rerank_pb2.FailedDocument(index=index, reason=failure.reason)
            for index, failure in ranking.failures
        ],
    )
    for result in ranking.results:
        entry = response.results.add(
            index=result.index,
            relevance_score=result.score,
            truncated=result.truncated,
            tokens=result.tokens,
        )
        if return_documents:
            entry.document = query.documents[result.index]
        if result.span is not None:
            entry.winning_span.start, entry.winning_span.end = result.span
    return response


def model_message(info: ModelInfo, limits: Limits, server_name: str) -> rerank_pb2.GetModelResponse:
    """Describe the model and the server."""
    return rerank_pb2.GetModelResponse(
        model=info.model_id,
        revision=info.revision,
        architecture=info.architecture,
        max_tokens=info.max_tokens,
        execution=info.execution,
        accepts_instruction=info.accepts_instruction,
        limits=rerank_pb2.Limits(
            max_documents=limits.max_documents,
            max_request_bytes=limits.max_request_bytes,
            max_query_bytes=limits.max_query_bytes,
            max_windows_per_document=limits.max_windows_per_document,
        ),
        score_range=rerank_pb2.ScoreRange(minimum=0.0, maximum=1.0),
        server=server_name,
        server_version=__version__,
        fingerprint=info.fingerprint,
    )


def _known(names: dict[K, V], number: K, field: str) -> V:
    try:
        return names[number]
    except KeyError:
        raise InvalidRequest(
            field, f"{number} is not known to this server; the contract may be newer than it"
        ) from None


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration
