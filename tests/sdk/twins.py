"""Both clients behind one blocking face, so that each test of behaviour runs against both."""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from rerank import AsyncRerankClient, ModelInfo, Query, Ranking, RerankClient, RerankError, ServingStatus

__all__ = ["AsyncTwin", "Connect", "SyncTwin", "Twin"]

T = TypeVar("T")


class Twin(Protocol):
    """What tests use of a client, as blocking calls."""

    def rerank(self, query: str, documents: Iterable[T], **options: Any) -> Ranking[T]: ...
    def rerank_many(
        self, queries: Iterable[Query[Any, T]], **options: Any
    ) -> Iterator[tuple[Any, Ranking[T] | RerankError]]: ...
    def get_model(self, **options: Any) -> ModelInfo: ...
    def health(self, **options: Any) -> ServingStatus: ...
    def wait_until_ready(self, timeout_s: float) -> None: ...
    def close(self) -> None: ...


Connect = Callable[..., Twin]


class SyncTwin(AbstractContextManager["SyncTwin"]):
    """A RerankClient as it is."""

    def __init__(self, target: str, **options: Any) -> None:
        self.client = RerankClient(target, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.client.close()


class AsyncTwin(AbstractContextManager["AsyncTwin"]):
    """An AsyncRerankClient with an event loop of its own, which runs while a call does."""

    def __init__(self, target: str, **options: Any) -> None:
        self.client = AsyncRerankClient(target, **options)
        self.runner = asyncio.Runner()

    def __enter__(self) -> Self:
        return self

    def rerank(self, query: str, documents: Iterable[T], **options: Any) -> Ranking[T]:
        return self.runner.run(self.client.rerank(query, documents, **options))

    def rerank_many(
        self, queries: Iterable[Query[Any, T]], **options: Any
    ) -> Iterator[tuple[Any, Ranking[T] | RerankError]]:
        outcomes = self.client.rerank_many(queries, **options)

        async def next_outcome() -> Any:
            return await anext(outcomes, None)

        async def close() -> None:
            await outcomes.aclose()  # type: ignore[attr-defined]

        try:
            while (outcome := self.runner.run(next_outcome())) is not None:
                yield outcome
        finally:
            self.runner.run(close())

    def get_model(self, **options: Any) -> ModelInfo:
        return self.runner.run(self.client.get_model(**options))

    def health(self, **options: Any) -> ServingStatus:
        return self.runner.run(self.client.health(**options))

    def wait_until_ready(self, timeout_s: float) -> None:
        self.runner.run(self.client.wait_until_ready(timeout_s))

    def close(self) -> None:
        self.runner.run(self.client.close())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        self.runner.close()
