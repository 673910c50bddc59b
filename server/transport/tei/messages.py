"""tei.v1 messages to the domain and back."""

import math
import time
from collections.abc import Sequence

from server import __version__
from server.models.base import ModelInfo
from server.reranker import Limits, Ranking, RerankQuery
from server.transport.tei.v1 import tei_pb2
from server.transport.tei_facts import STATED_CONCURRENT_REQUESTS, tei_dtype, tei_truncation

__all__ = ["info_message", "query_from_message", "ranking_message", "request_from_stream"]


def query_from_message(message: tei_pb2.RerankRequest, time_remaining_s: float | None) -> RerankQuery:
    """Read a request."""
    return RerankQuery(
        query=message.query,
        documents=list(message.texts),
        raw_scores=message.raw_scores,
        truncation=tei_truncation(
            truncate=message.truncate,
            left=message.truncation_direction == tei_pb2.TRUNCATION_DIRECTION_LEFT,
        ),
        deadline_s=math.inf if time_remaining_s is None else time.monotonic() + time_remaining_s,
    )


def request_from_stream(messages: Sequence[tei_pb2.RerankStreamRequest]) -> tei_pb2.RerankRequest:
    """The request that a stream's messages make together: the first decides all but the texts."""
    if not messages:
        return tei_pb2.RerankRequest()
    first = messages[0]
    return tei_pb2.RerankRequest(
        query=first.query,
        texts=[message.text for message in messages],
        truncate=first.truncate,
        raw_scores=first.raw_scores,
        return_text=first.return_text,
        truncation_direction=first.truncation_direction,
    )


def ranking_message(query: RerankQuery, ranking: Ranking, *, return_text: bool) -> tei_pb2.RerankResponse:
    """Write an answer; texts are echoed from the query, since each look at a message copies them."""
    timings = ranking.timings
    return tei_pb2.RerankResponse(
        ranks=[
            tei_pb2.Rank(
                index=ranked.index,
                score=ranked.score,
                text=query.documents[ranked.index] if return_text else None,
            )
            for ranked in ranking.results
        ],
        metadata=tei_pb2.Metadata(
            compute_chars=len(query.query) + sum(map(len, query.documents)),
            compute_tokens=ranking.usage.computed_tokens,
            total_time_ns=_ns(timings.total_s),
            tokenization_time_ns=_ns(timings.tokenise_s),
            queue_time_ns=_ns(timings.queue_s),
            inference_time_ns=_ns(timings.compute_s),
        ),
    )


def info_message(info: ModelInfo, limits: Limits) -> tei_pb2.InfoResponse:
    """Describe the model and the server."""
    return tei_pb2.InfoResponse(
        version=__version__,
        model_id=info.model_id,
        model_sha=info.revision,
        model_dtype=tei_dtype(info.execution),
        model_type=tei_pb2.MODEL_TYPE_RERANKER,
        max_concurrent_requests=STATED_CONCURRENT_REQUESTS,
        max_input_length=info.max_tokens,
        max_batch_tokens=info.default_token_budget,
        max_client_batch_size=limits.max_documents,
        tokenization_workers=1,
    )


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
