"""AsyncRerankClient: the same client for asyncio."""

import asyncio
import contextlib
import inspect
import warnings
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from types import TracebackType
from typing import Any, Self

from rerank._api_key import AsyncApiKey, check_api_key
from rerank._async_transport import AsyncGrpcTransport, AsyncTransport
from rerank._errors import RerankError, TooLargeError
from rerank._health import ServingStatus
from rerank._hedging import HedgePolicy
from rerank._model_info import ModelInfo, model_info
from rerank._options import PriorityLike, RerankOptions, TruncationLike
from rerank._plan import plan
from rerank._readiness import Readiness
from rerank._results import Ranking
from rerank._retry import LoadBalancing, RetryPolicy
from rerank._settings import (
    DEFAULT_MAX_IN_FLIGHT,
    DEFAULT_TIMEOUT_S,
    Call,
    ClientSettings,
    MetadataSource,
    begin_call,
    client_settings,
)
from rerank._sharding import DEFAULT_MAX_REQUEST_BYTES, DEFAULT_MAX_REQUEST_DOCUMENTS, is_cured_by_splitting
from rerank._stream import Query, StreamSession
from rerank._tls import TLSConfig
from rerank._type_variables import K, T

__all__ = ["AsyncRerankClient"]


class AsyncRerankClient:
    """Ranks documents by their relevance to a query, on a Rerank service, with asyncio.

    The twin of RerankClient: every argument and result is the same, and described there.
    One client holds one connection and belongs to the event loop that first uses it. The
    api_key may also be a coroutine function.

    Example:
        async with AsyncRerankClient("lb:443") as client:
            ranking = await client.rerank("what do pandas eat?", ["Pandas eat bamboo.", "Cats sleep."])
            print(ranking[0].document, ranking[0].score)
    """

    def __init__(
        self,
        target: str,
        *,
        tls: TLSConfig | bool | None = None,
        api_key: AsyncApiKey | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retry: RetryPolicy | None = None,
        hedge: HedgePolicy | None = None,
        max_request_bytes: int = DEFAULT_MAX_REQUEST_BYTES,
        max_request_documents: int = DEFAULT_MAX_REQUEST_DOCUMENTS,
        max_in_flight: int = DEFAULT_MAX_IN_FLIGHT,
        load_balancing: LoadBalancing = "pick_first",
        metadata: MetadataSource | None = None,
        grpc_options: Iterable[tuple[str, Any]] = (),
    ) -> None:
        self._closed = True  # until there is something to close
        settings = client_settings(
            target,
            tls=tls,
            timeout_s=timeout_s,
            retry=retry,
            hedge=hedge,
            max_request_bytes=max_request_bytes,
            max_request_documents=max_request_documents,
            max_in_flight=max_in_flight,
            load_balancing=load_balancing,
            metadata=metadata,
            grpc_options=grpc_options,
        )
        if isinstance(api_key, str):
            check_api_key(api_key)
        self._open(settings, AsyncGrpcTransport(settings), api_key)

    def _open(self, settings: ClientSettings, transport: AsyncTransport, api_key: AsyncApiKey | None) -> None:
        self._settings = settings
        self._limits = settings.limits
        self._transport = transport
        self._api_key = api_key
        self._closed = False

    async def rerank(
        self,
        query: str,
        documents: Iterable[T],
        *,
        text: Callable[[T], str] | None = None,
        top_n: int | None = None,
        raw_scores: bool = False,
        truncation: TruncationLike | None = None,
        max_tokens_per_document: int | None = None,
        model: str | None = None,
        priority: PriorityLike | None = None,
        instruction: str | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> Ranking[T]:
        """Return the documents in the order of their relevance to the query; see RerankClient.rerank.

        Cancelling the task cancels the work on the servers.

        Example:
            ranking = await client.rerank(question, articles, text=lambda article: article.body, top_n=3)
        """
        options = RerankOptions(
            top_n=top_n,
            raw_scores=raw_scores,
            truncation=truncation,
            max_tokens_per_document=max_tokens_per_document,
            model=model,
            priority=priority,
            instruction=instruction,
        )
        planned = plan(query, documents, text=text, options=options, limits=self._limits)
        call = await self._begin(timeout_s, request_id)
        try:
            replies = await self._transport.gather(planned, call)
        except TooLargeError as error:
            if not is_cured_by_splitting(error):
                raise
            # This server takes less than the client thought: learn how much, and cut again.
            info = model_info(await self._transport.get_model(call))
            self._limits = self._limits.narrowed(info.limits, error)
            planned = plan(query, planned.documents, text=text, options=options, limits=self._limits)
            replies = await self._transport.gather(planned, call)
        return planned.merge(replies, request_id=call.request_id)

    def rerank_many(
        self,
        queries: Iterable[Query[K, T]] | AsyncIterable[Query[K, T]],
        *,
        text: Callable[[T], str] | None = None,
        top_n: int | None = None,
        raw_scores: bool = False,
        truncation: TruncationLike | None = None,
        max_tokens_per_document: int | None = None,
        model: str | None = None,
        priority: PriorityLike | None = None,
        instruction: str | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> AsyncIterator[tuple[K, Ranking[T] | RerankError]]:
        """Yield (id, ranking or error) for each query as it is answered; see RerankClient.rerank_many.

        The queries may also come from an asynchronous iterable. Close the iterator
        (contextlib.aclosing) if you leave it before its end.

        Example:
            async for id, outcome in client.rerank_many(queries, priority="batch", top_n=10):
                if isinstance(outcome, RerankError):
                    log.warning("%s failed: %s", id, outcome)
                else:
                    await save(id, outcome.documents)
        """
        options = RerankOptions(
            top_n=top_n,
            raw_scores=raw_scores,
            truncation=truncation,
            max_tokens_per_document=max_tokens_per_document,
            model=model,
            priority=priority,
            instruction=instruction,
        )
        return self._rerank_many(queries, text, options, timeout_s, request_id)

    async def _rerank_many(
        self,
        queries: Iterable[Query[K, T]] | AsyncIterable[Query[K, T]],
        text: Callable[[T], str] | None,
        options: RerankOptions,
        timeout_s: float | None,
        request_id: str | None,
    ) -> AsyncIterator[tuple[K, Ranking[T] | RerankError]]:
        session: StreamSession[K, T] = StreamSession(
            text=text,
            options=options,
            settings=self._settings,
            limits=self._limits,
            call=await self._begin(timeout_s, request_id),
        )
        async with contextlib.aclosing(self._transport.stream(session, queries)) as outcomes:
            async for outcome in outcomes:
                yield outcome

    async def get_model(self, *, timeout_s: float | None = None) -> ModelInfo:
        """Return what the server says about its model and limits.

        Example:
            assert (await client.get_model()).id == "BAAI/bge-reranker-v2-m3"
        """
        return model_info(await self._transport.get_model(await self._begin(timeout_s)))

    async def health(self, *, timeout_s: float | None = None) -> ServingStatus:
        """Return what the server says about its health, by the standard gRPC health check.

        Example:
            healthy = await client.health() is ServingStatus.SERVING
        """
        return await self._transport.health(await self._begin(timeout_s))

    async def wait_until_ready(self, timeout_s: float | None = None) -> None:
        """Return as soon as the server is healthy; raise DeadlineExceededError if it isn't in time.

        Example:
            await client.wait_until_ready(timeout_s=120)  # a big model takes its time to load
        """
        readiness = Readiness(self._settings, timeout_s)
        while True:
            attempt_s = readiness.attempt_s()  # raises when the time is up
            try:
                status = await self.health(timeout_s=attempt_s)
            except RerankError as error:
                readiness.failed(error)
            else:
                if readiness.is_ready(status):
                    return
            await asyncio.sleep(readiness.pause_s())

    async def close(self) -> None:
        """Close the connection; calls under way fail with ClientClosedError."""
        if not self._closed:
            self._closed = True
            await self._transport.close()

    async def _begin(self, timeout_s: float | None, request_id: str | None = None) -> Call:
        api_key: Any = self._api_key
        if callable(api_key):
            api_key = api_key()
            if inspect.isawaitable(api_key):
                api_key = await api_key
            check_api_key(api_key)
        return begin_call(self._settings, timeout_s=timeout_s, request_id=request_id, api_key=api_key)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        # A client that never called anything has no connection to leak.
        if not getattr(self, "_closed", True) and self._transport.is_open:
            warnings.warn(
                f"unclosed {self!r}; use it in an async with statement", ResourceWarning, stacklevel=2
            )

    def __repr__(self) -> str:
        security = "TLS" if self._settings.tls else "plain text"
        return f"<{type(self).__name__} {self._settings.target!r} ({security})>"
