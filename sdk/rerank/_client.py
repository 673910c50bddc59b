"""RerankClient: the blocking client."""

import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Self

from rerank._api_key import ApiKey, check_api_key
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
from rerank._transport import GrpcTransport, Transport
from rerank._type_variables import K, T

__all__ = ["RerankClient"]


class RerankClient:
    """Ranks documents by their relevance to a query, on a Rerank service.

    One client holds one connection, is safe to use from many threads, and is meant to be
    kept. Nothing is sent before the first call.

    Args:
        target: host:port of the service or its load balancer, or any other gRPC target.
        tls: TLS with public authorities by default, none on loopback. False for plain
            text, True or a TLSConfig for TLS.
        api_key: sent with each call; a callable is asked before each call.
        timeout_s: the longest that a call may take, all attempts included.
        retry: how often an attempt that hit a busy or vanished server is repeated.
        hedge: when to ask a second server because the first is slow; never by default.
        max_request_bytes: a longer request is split and sent in parts.
        max_request_documents: a request with more documents is split and sent in parts.
        max_in_flight: how many parts of one call, or queries of one stream, are sent
            before the first of them is answered.
        load_balancing: "round_robin" spreads calls over all addresses of the target and
            heeds each server's health; for targets that aren't behind a proxy.
        metadata: further headers for each call, or a callable that gives them, for
            example `traceparent`.
        grpc_options: gRPC channel arguments, which win over this package's own.

    Example:
        with RerankClient("lb:443") as client:
            ranking = client.rerank("what do pandas eat?", ["Pandas eat bamboo.", "Cats sleep."])
            print(ranking[0].document, ranking[0].score)
    """

    def __init__(
        self,
        target: str,
        *,
        tls: TLSConfig | bool | None = None,
        api_key: ApiKey | None = None,
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
        self._open(settings, GrpcTransport(settings), api_key)

    def _open(self, settings: ClientSettings, transport: Transport, api_key: ApiKey | None) -> None:
        self._settings = settings
        self._limits = settings.limits
        self._transport = transport
        self._api_key = api_key
        self._closed = False

    def rerank(
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
        """Return the documents in the order of their relevance to the query, best first.

        A list that is too long for one request is split, sent concurrently and merged to
        the ranking that one request would have given; if a part fails, the call fails.

        Args:
            query: what is asked; must not be blank.
            documents: strings, or any objects together with `text`.
            text: returns the text of one of your objects.
            top_n: how many of the best to return; None or 0 for all.
            raw_scores: return the model's logits instead of scores in [0, 1].
            truncation: what to do with documents that are too long for the model: "end"
                cuts them (the default), "error" refuses them, "chunk" scores them in
                overlapping windows and reports the best as `span`.
            max_tokens_per_document: read at most so many tokens of each document.
            model: refuse the call unless this model is served.
            priority: "batch" for work that nobody waits for.
            instruction: the task, for models that take one.
            timeout_s: the client's timeout_s, for this call.
            request_id: names the call in the servers' logs; made up by default.

        Raises:
            RerankError: one of its subclasses, which say what to do.

        Example:
            ranking = client.rerank(question, articles, text=lambda article: article.body, top_n=3)
            for ranked in ranking:
                print(ranked.score, ranked.document.title)
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
        call = self._begin(timeout_s, request_id)
        try:
            replies = self._transport.gather(planned, call)
        except TooLargeError as error:
            if not is_cured_by_splitting(error):
                raise
            # This server takes less than the client thought: learn how much, and cut again.
            info = model_info(self._transport.get_model(call))
            self._limits = self._limits.narrowed(info.limits, error)
            planned = plan(query, planned.documents, text=text, options=options, limits=self._limits)
            replies = self._transport.gather(planned, call)
        return planned.merge(replies, request_id=call.request_id)

    def rerank_many(
        self,
        queries: Iterable[Query[K, T]],
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
    ) -> Iterator[tuple[K, Ranking[T] | RerankError]]:
        """Yield (id, ranking) for each query as soon as it is answered, in any order.

        A query that fails yields (id, error), and the others go on. The queries are read
        as answers come in, so the iterable may be endless. A stream that breaks is opened
        again for what has no answer yet; an error is raised only if that fails too.

        All queries travel on one stream, to one server. To spread a few big calls over a
        fleet, call `rerank`.

        Args:
            queries: rerank.Query objects.
            timeout_s: the longest that one query may wait for its answer; the whole may
                take as long as it takes.
            text: see `rerank`, as for everything else.
            top_n: see `rerank`.
            raw_scores: see `rerank`.
            truncation: see `rerank`.
            max_tokens_per_document: see `rerank`.
            model: see `rerank`.
            priority: see `rerank`.
            instruction: see `rerank`.
            request_id: see `rerank`; one for all queries.

        Example:
            queries = (Query(row.id, row.question, row.candidates) for row in rows)
            for id, outcome in client.rerank_many(queries, priority="batch", top_n=10):
                if isinstance(outcome, RerankError):
                    log.warning("%s failed: %s", id, outcome)
                else:
                    save(id, outcome.documents)
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
        session: StreamSession[K, T] = StreamSession(
            text=text,
            options=options,
            settings=self._settings,
            limits=self._limits,
            call=self._begin(timeout_s, request_id),
        )
        return self._transport.stream(session, queries)

    def get_model(self, *, timeout_s: float | None = None) -> ModelInfo:
        """Return what the server says about its model and limits.

        Example:
            assert client.get_model().id == "BAAI/bge-reranker-v2-m3"
        """
        return model_info(self._transport.get_model(self._begin(timeout_s)))

    def health(self, *, timeout_s: float | None = None) -> ServingStatus:
        """Return what the server says about its health, by the standard gRPC health check.

        Example:
            healthy = client.health() is ServingStatus.SERVING
        """
        return self._transport.health(self._begin(timeout_s))

    def wait_until_ready(self, timeout_s: float | None = None) -> None:
        """Return as soon as the server is healthy; raise DeadlineExceededError if it isn't in time.

        Example:
            client.wait_until_ready(timeout_s=120)  # a big model takes its time to load
        """
        readiness = Readiness(self._settings, timeout_s)
        while True:
            attempt_s = readiness.attempt_s()  # raises when the time is up
            try:
                status = self.health(timeout_s=attempt_s)
            except RerankError as error:
                readiness.failed(error)
            else:
                if readiness.is_ready(status):
                    return
            time.sleep(readiness.pause_s())

    def close(self) -> None:
        """Close the connection; calls under way fail with ClientClosedError."""
        if not self._closed:
            self._closed = True
            self._transport.close()

    def _begin(self, timeout_s: float | None, request_id: str | None = None) -> Call:
        api_key = check_api_key(self._api_key()) if callable(self._api_key) else self._api_key
        return begin_call(self._settings, timeout_s=timeout_s, request_id=request_id, api_key=api_key)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            warnings.warn(f"unclosed {self!r}; use it in a with statement", ResourceWarning, stacklevel=2)

    def __repr__(self) -> str:
        security = "TLS" if self._settings.tls else "plain text"
        return f"<{type(self).__name__} {self._settings.target!r} ({security})>"
