"""POST: read, find the dialect, ask the reranker, answer in the dialect."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from server.reranker import Ranking, RerankQuery
from server.transport.api_keys import Caller
from server.transport.http.bodies import LARGE_BODY_BYTES, decode, decompress, read_body
from server.transport.http.deadlines import deadline_s
from server.transport.http.dialects import AnyDialect, Facts, PathDialects, dialect_of
from server.transport.http.service import Exchange, HttpService, unless_disconnected

__all__ = ["CLIENT_CLOSED_REQUEST", "reranking_endpoint"]

# Nginx's number for a caller who hung up; it is for the log, nobody reads the answer.
CLIENT_CLOSED_REQUEST = 499


def reranking_endpoint(service: HttpService, path: PathDialects) -> Callable[[Request], Awaitable[Response]]:
    """The endpoint of one path."""

    async def endpoint(request: Request) -> Response:
        try:
            async with service.exchange(request) as exchange:
                await _answer(service, path, exchange)
        except asyncio.CancelledError:
            if not await request.is_disconnected():
                raise
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        return exchange.response

    return endpoint


async def _answer(service: HttpService, path: PathDialects, exchange: Exchange) -> None:
    request = exchange.request
    if len(path.dialects) == 1:
        exchange.error_body = path.dialects[0].error
    caller = service.caller(request.headers)
    deadline = deadline_s(request.headers)
    body = await read_body(request, service.max_request_bytes)
    dialect, message = await _parsed(
        body, request.headers.get("content-encoding", ""), path, service, exchange
    )
    facts = Facts(
        model=service.reranker.info.model_id,
        return_documents=service.return_documents,
        request_id=exchange.call.request_id,
        created=int(time.time()),
        path=request.url.path,
    )
    queries = [
        replace(query, deadline_s=deadline, model=query.model if service.check_model else "")
        for query in dialect.queries(message, facts)
    ]
    rankings = await unless_disconnected(request, _rankings(service, caller, queries))
    _note(exchange, queries, rankings)
    await exchange.answer(
        dialect.render(message, rankings, facts), headers=_cost_headers(queries, rankings, exchange)
    )


async def _parsed(
    body: bytes, encoding: str, path: PathDialects, service: HttpService, exchange: Exchange
) -> tuple[AnyDialect, Any]:
    """The dialect and its request; errors are worded by the dialect as soon as it is known."""

    def parse() -> tuple[AnyDialect, Any]:
        plain = decompress(body, encoding, service.max_request_bytes)
        dialect = dialect_of(path, plain)
        exchange.error_body = dialect.error
        exchange.call.notes["dialect"] = dialect.name
        return dialect, decode(plain, dialect.request)

    if len(body) < LARGE_BODY_BYTES and not encoding:
        return parse()
    return await asyncio.to_thread(parse)


async def _rankings(
    service: HttpService, caller: Caller, queries: Sequence[RerankQuery]
) -> Sequence[Ranking]:
    """Rank all queries of one request; they hold one place among the caller's."""
    with caller.query():
        if len(queries) == 1:
            rankings = [await service.reranker.rerank(queries[0])]
        else:
            rankings = await _all(service, queries)
    caller.charge(sum(ranking.usage.computed_tokens for ranking in rankings))
    return rankings


async def _all(service: HttpService, queries: Sequence[RerankQuery]) -> list[Ranking]:
    tasks: list[asyncio.Task[Ranking]] = []
    try:
        async with asyncio.TaskGroup() as group:
            tasks += [group.create_task(service.reranker.rerank(query)) for query in queries]
    except BaseExceptionGroup as errors:
        # One answer can tell one error, and the first is as good as any.
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def _note(exchange: Exchange, queries: Sequence[RerankQuery], rankings: Sequence[Ranking]) -> None:
    exchange.call.notes |= {
        "documents": sum(len(query.documents) for query in queries),
        "computed_tokens": sum(ranking.usage.computed_tokens for ranking in rankings),
        "cached_pairs": sum(ranking.usage.cached_pairs for ranking in rankings),
        "queue_milliseconds": round(max((r.timings.queue_s for r in rankings), default=0.0) * 1000, 1),
    }


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
    failed = [str(index) for ranking in rankings for index, _ in ranking.failures]
    if failed:
        # Bounded, since proxies bound headers.
        headers["x-failed-documents"] = ",".join(failed[:100])
    return headers
