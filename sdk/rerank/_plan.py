"""One rerank call without its I/O: check, cut into requests, merge the answers exactly."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic

from google.protobuf.duration_pb2 import Duration

from rerank._documents import as_documents, texts_of
from rerank._errors import ModelNotServedError, ProtocolError, RerankError, TooLargeError, copy_with
from rerank._options import RerankOptions, encoded_length
from rerank._results import FailedDocument, RankedDocument, Ranking, Span, Timings, Usage
from rerank._sharding import ShardLimits, document_cost_bytes, split
from rerank._type_variables import T
from rerank.v1 import rerank_pb2 as wire

__all__ = ["Plan", "Reply", "plan"]


# Whether a call asks for logits is only known when it has been cut, so room is left for it.
RAW_SCORES_BYTES = wire.RerankRequest(raw_scores=True).ByteSize()

# As much of a fingerprint as a person needs to tell two of them apart.
FINGERPRINT_SHOWN = 12

DOCUMENT_FIELD = re.compile(r"^documents\[(\d{1,9})\]")


@dataclass(frozen=True, slots=True)
class Reply:
    """A server's answer to one request of a plan, and who gave it."""

    response: wire.RerankResponse
    servers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan(Generic[T]):
    """The requests that one call needs, and the way back from their answers to a ranking."""

    documents: tuple[T, ...]
    options: RerankOptions
    shards: tuple[range, ...]
    requests: tuple[wire.RerankRequest, ...]

    def locate(self, shard: int, error: RerankError) -> RerankError:
        """Return the error of one request in terms of the whole call.

        "documents[3]" of the second request may be documents[131] of the caller's list.
        """
        found = DOCUMENT_FIELD.match(error.field)
        start = self.shards[shard].start
        if not found or start == 0:
            return error
        here, there = found.group(0), f"documents[{start + int(found.group(1))}]"
        return copy_with(
            error,
            message=error.message.replace(here, there),
            field=error.field.replace(here, there, 1),
        )

    def merge(self, replies: Sequence[Reply], *, request_id: str) -> Ranking[T]:
        """Return the ranking that one request with all the documents would have given."""
        servers = tuple(dict.fromkeys(name for reply in replies for name in reply.servers))
        ranked: list[RankedDocument[T]] = []
        failures: list[FailedDocument[T]] = []
        for shard, reply in zip(self.shards, replies, strict=True):
            self._check(shard, reply, request_id)
            ranked.extend(_ranked(result, shard.start, self.documents) for result in reply.response.results)
            for failure in reply.response.failures:
                index = shard.start + failure.index
                failures.append(FailedDocument(index, failure.reason, self.documents[index]))
        if len(replies) > 1:
            _check_one_model(replies, request_id, servers)
            ranked = self._order(ranked)
        responses = [reply.response for reply in replies]
        return Ranking(
            ranked,
            model=responses[0].model if responses else "",
            usage=_usage([response.usage for response in responses]),
            timings=_timings([response.timings for response in responses]),
            failures=sorted(failures, key=lambda failure: failure.index),
            request_id=request_id,
            servers=servers,
        )

    def _order(self, ranked: list[RankedDocument[T]]) -> list[RankedDocument[T]]:
        # Requests of a plan with several parts ask for logits, because different logits
        # can round to one score: only logits decide the order as a single server would.
        best_first = sorted(ranked, key=lambda document: (-document.score, document.index))
        kept = best_first[: self.options.top_n or len(best_first)]
        if self.options.raw_scores:
            return kept
        return [replace(document, score=sigmoid(document.score)) for document in kept]

    def _check(self, shard: range, reply: Reply, request_id: str) -> None:
        """Refuse an answer that would silently lose, repeat or invent documents."""
        response = reply.response
        ranked = {result.index for result in response.results}
        failed = {failure.index for failure in response.failures}
        expected = min(self.options.top_n or len(shard), len(shard) - len(failed))
        broken = (
            len(ranked) != len(response.results)
            or len(failed) != len(response.failures)
            or len(ranked) != expected
            or not ranked.isdisjoint(failed)
            or any(index >= len(shard) for index in ranked | failed)
        )
        if broken:
            raise ProtocolError(
                f"the answer to {len(shard)} documents has {len(response.results)} results and "
                f"{len(response.failures)} failures that don't account for each document once",
                request_id=request_id,
                servers=reply.servers,
            )


def plan(
    query: str,
    documents: Iterable[T],
    *,
    text: Callable[[T], str] | None,
    options: RerankOptions,
    limits: ShardLimits,
) -> Plan[T]:
    """Check a call and cut it into requests; without documents there are none to send."""
    base = options.request(query)
    own = as_documents(documents)
    texts = texts_of(own, text)
    costs = [
        document_cost_bytes(encoded_length(f"documents[{index}]", value)) for index, value in enumerate(texts)
    ]
    left_bytes = limits.max_bytes - base.ByteSize() - RAW_SCORES_BYTES
    if left_bytes <= 0 and costs:
        raise TooLargeError(
            f"query: leaves no room for a document in a request of {limits.max_bytes:,} bytes "
            "(max_request_bytes), and a query is never split",
            field="query",
        )
    shards = tuple(split(costs, max_bytes=left_bytes, max_documents=limits.max_documents))
    if len(shards) > 1:
        base.raw_scores = True
    return Plan(own, options, shards, tuple(_with_documents(base, texts, shard) for shard in shards))


def sigmoid(logit: float) -> float:
    """Return 1 / (1 + exp(-logit)) in float64, without overflow on either side."""
    if logit >= 0:
        return 1.0 / (1.0 + math.exp(-logit))
    grown = math.exp(logit)
    return grown / (1.0 + grown)


def _with_documents(base: wire.RerankRequest, texts: list[str], shard: range) -> wire.RerankRequest:
    request = wire.RerankRequest()
    request.CopyFrom(base)
    request.documents.extend(texts[shard.start : shard.stop])
    return request


def _ranked(result: wire.RankedDocument, start: int, documents: tuple[T, ...]) -> RankedDocument[T]:
    index = start + result.index
    span = None
    if result.HasField("winning_span"):
        span = Span(result.winning_span.start, result.winning_span.end)
    return RankedDocument(
        index=index,
        score=result.relevance_score,
        document=documents[index],
        truncated=result.truncated,
        tokens=result.tokens,
        span=span,
    )


def _check_one_model(replies: Sequence[Reply], request_id: str, servers: tuple[str, ...]) -> None:
    told: dict[tuple[str, str], set[str]] = {}
    for reply in replies:
        told.setdefault((reply.response.model, reply.response.fingerprint), set()).update(reply.servers)
    names = {name for name, _ in told}
    # Servers that are too old for fingerprints are told apart by name alone.
    fingerprints = {fingerprint for _, fingerprint in told if fingerprint}
    if len(names) > 1 or len(fingerprints) > 1:
        raise ModelNotServedError(
            f"model: parts of this call were scored by different models ({_who_has_what(told)}), whose "
            "scores can't be compared; wait for the roll-out to end, or let all servers run the same "
            "weights in the same precision",
            reason="MODELS_DIFFER",
            field="model",
            request_id=request_id,
            servers=servers,
        )


def _who_has_what(told: Mapping[tuple[str, str], Iterable[str]]) -> str:
    return "; ".join(
        f"{name}{f' {fingerprint[:FINGERPRINT_SHOWN]}' if fingerprint else ''} on "
        f"{', '.join(sorted(servers)) or 'a server without a name'}"
        for (name, fingerprint), servers in sorted(told.items())
    )


def _usage(parts: Sequence[wire.Usage]) -> Usage:
    return Usage(
        computed_tokens=sum(part.computed_tokens for part in parts),
        computed_pairs=sum(part.computed_pairs for part in parts),
        cached_pairs=sum(part.cached_pairs for part in parts),
    )


def _timings(parts: Sequence[wire.Timings]) -> Timings:
    return Timings(
        queue_s=max((seconds(part.queue) for part in parts), default=0.0),
        tokenise_s=max((seconds(part.tokenise) for part in parts), default=0.0),
        compute_s=max((seconds(part.compute) for part in parts), default=0.0),
        total_s=max((seconds(part.total) for part in parts), default=0.0),
    )


def seconds(duration: Duration) -> float:
    """Return a protobuf duration in seconds."""
    return duration.seconds + duration.nanos / 1e9
