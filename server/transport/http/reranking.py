"""POST: read, find the dialect, ask the reranker, answer in the dialect."""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from server.reranker import Ranking, RerankQuery
from server.transport.http.deadlines import deadline_s
from server.transport.http.decoding import check_values, decode
from server.transport.http.dialects import AnyDialect, Facts, PathDialects, dialect_of
from server.transport.http.dialects.base import failed_documents
from server.transport.http.encodings import decompress
from server.transport.http.service import JSON, Exchange, HttpService, unless_disconnected
from server.transport.offload import SMALL_BYTES, off_loop

__all__ = ["reranking_endpoint"]

# An answer about more than these takes longer to write than a thread to start.
FEW_DOCUMENTS = 256
# Proxies bound headers.
MAX_FAILED_IN_HEADER = 100


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request, understood."""

    dialect: AnyDialect
    message: Any
    queries: Sequence[RerankQuery]
    facts: Facts
    large: bool
    """Whether writing its answer would hold up the event loop."""

    def render(self, rankings: Sequence[Ranking]) -> bytes:
        """The answer as JSON."""
        return msgspec.json.encode(self.dialect.render(self.message, self.queries, rankings, self.facts))


def reranking_endpoint(service: HttpService, path: PathDialects) -> Callable[[Request], Awaitable[Response]]:
    """The endpoint of one path."""

    async def endpoint(request: Request) -> Response:
        async with service.exchange(request) as exchange:
            await _answer(service, path, exchange)
        return exchange.response

    return endpoint


async def _answer(service: HttpService, path: PathDialects, exchange: Exchange) -> None:
    request = exchange.request
    if len(path.dialects) == 1:
        exchange.error_body = path.dialects[0].error
    caller = service.caller(request.headers)
    deadline = deadline_s(request.headers)

    def of_caller(query: RerankQuery) -> RerankQuery:
        model = query.model if service.check_model else ""
        return replace(query, deadline_s=deadline, model=model, charge=caller.charge)

    asked = await _asked(service, path, exchange, of_caller)
    # All queries of one request hold one place among the caller's.
    with caller.query():
        rankings = await unless_disconnected(request, service.reranker.rerank_all(asked.queries))
    exchange.call.note_cost(sum(len(query.documents) for query in asked.queries), rankings)
    body = await off_loop(asked.render, rankings) if asked.large else asked.render(rankings)
    await exchange.answer_bytes(body, JSON, headers=_cost_headers(asked.queries, rankings, exchange))


async def _asked(
    service: HttpService,
    path: PathDialects,
    exchange: Exchange,
    of_caller: Callable[[RerankQuery], RerankQuery],
) -> _Asked:
    """Read and understand a request; its body is not kept."""
    request = exchange.request
    facts = Facts(
        model=service.reranker.info.model_id,
        return_documents=service.return_documents,
        request_id=exchange.call.request_id,
        created=int(time.time()),
        path=request.url.path,
        max_documents=service.reranker.limits.max_documents,
        max_request_bytes=service.max_request_bytes,
    )
    encoding = request.headers.get("content-encoding", "")

    def parse(body: bytearray) -> tuple[AnyDialect, Any, bool]:
        plain = decompress(body, encoding, facts.max_request_bytes)
        check_values(plain, facts.max_documents)
        dialect = dialect_of(path, plain)
        # Errors are worded by the dialect as soon as it is known.
        exchange.error_body = dialect.error
        exchange.call.notes["dialect"] = dialect.name
        return dialect, decode(plain, dialect.request), len(plain) >= SMALL_BYTES

    async with service.bodies.read(request) as body:
        direct = len(body) < SMALL_BYTES and not encoding
        dialect, message, large = parse(body) if direct else await off_loop(parse, body)
    del body

    def build() -> _Asked:
        queries = [of_caller(query) for query in dialect.queries(message, facts)]
        many = sum(len(query.documents) for query in queries) > FEW_DOCUMENTS
        return _Asked(dialect, message, queries, facts, large=large or many)

    return await off_loop(build) if large else build()


def _cost_headers(
    queries: Sequence[RerankQuery], rankings: Sequence[Ranking], exchange: Exchange
) -> dict[str, str]:
    """What the answer cost, under the names that TEI gave these headers; times are in milliseconds."""

    def longest_ms(seconds: Callable[[Ranking], float]) -> str:
        return str(round(max((seconds(ranking) for ranking in rankings), default=0.0) * 1000))

    characters = sum(len(query.query) + sum(map(len, query.documents)) for query in queries)
    headers = {
        "x-compute-characters": str(characters),
        "x-compute-tokens": str(sum(ranking.usage.computed_tokens for ranking in rankings)),
        "x-cached-pairs": str(sum(ranking.usage.cached_pairs for ranking in rankings)),
        "x-total-time": str(round((time.monotonic() - exchange.started_s) * 1000)),
        "x-tokenization-time": longest_ms(lambda ranking: ranking.timings.tokenise_s),
        "x-queue-time": longest_ms(lambda ranking: ranking.timings.queue_s),
        "x-inference-time": longest_ms(lambda ranking: ranking.timings.compute_s),
    }
    failed = failed_documents(queries, rankings)[:MAX_FAILED_IN_HEADER]
    if failed:
        headers["x-failed-documents"] = ",".join(str(document.index) for document in failed)
    return headers
