"""What all HTTP endpoints share: identity, keys, the log, errors, and how answers are written."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
import structlog
from starlette.requests import Request
from starlette.responses import Response

from server.errors import Draining, RerankError, shortened
from server.reranker import Reranker
from server.transport.api_keys import ANYONE, ApiKeys, Caller
from server.transport.call import Call, CallLog
from server.transport.http.answers import response_to
from server.transport.http.errors import CallerGone, HttpError, combined_body, http_error
from server.transport.http.receiving import Bodies

__all__ = ["JSON", "Exchange", "HttpService", "ServerLoad", "unless_disconnected"]

JSON = "application/json"
# Nginx's number for a caller who hung up; it is for the log, nobody reads the answer.
CLIENT_CLOSED_REQUEST = 499

_log = structlog.get_logger("rerank.http")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ServerLoad:
    """How busy the server is at this moment."""

    queued_tokens: int
    tokens_per_second: float
    requests_in_progress: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpService:
    """The server as HTTP sees it; made once, by the application."""

    reranker: Reranker
    calls: CallLog
    server_name: str
    keys: ApiKeys | None
    """The same as gRPC's, so that a key's limits hold for both together."""
    serving: Callable[[], bool]
    load: Callable[[], ServerLoad]
    metrics: Callable[[], bytes]
    """The figures in Prometheus' text format."""
    bodies: Bodies
    max_request_bytes: int
    return_documents: bool
    """Whether documents are echoed to callers who don't say."""
    check_model: bool
    """Whether a request for another model than the one served is refused."""
    playground: bool

    def caller(self, headers: Mapping[str, str]) -> Caller:
        """Who calls.

        Raises:
            Unauthenticated: keys are configured and none of them is offered.
        """
        if self.keys is None:
            return ANYONE
        return self.keys.caller(headers.get("authorization"), headers.get("x-api-key"))

    @asynccontextmanager
    async def exchange(self, request: Request) -> AsyncIterator["Exchange"]:
        """One request from arrival to answer: counted, logged, and answered whatever happens."""
        method = f"{request.method} {shortened(request.url.path)}"
        with self.calls.call(method, request.headers.get("x-request-id")) as call:
            exchange = Exchange(self, request, call)
            try:
                async with _until(self.calls.expired):
                    yield exchange
            except CallerGone:
                exchange.abandon()
            except Exception as error:
                await exchange.fail(error)


@asynccontextmanager
async def _until(expired: asyncio.Event) -> AsyncIterator[None]:
    """The body of the context is cancelled when the drain's time is over.

    Raises:
        Draining: that happened.
    """
    patience = asyncio.timeout(None)

    async def watch() -> None:
        await expired.wait()
        patience.reschedule(0)

    watching = asyncio.create_task(watch())
    try:
        async with patience:
            yield
    except TimeoutError:
        if not patience.expired():
            raise
        raise Draining("this server is about to stop; ask another one") from None
    finally:
        watching.cancel()


@dataclass(slots=True)
class Exchange:
    """One request and, in the end, its response."""

    service: HttpService
    request: Request
    call: Call
    started_s: float = field(default_factory=time.monotonic)
    error_body: Callable[[HttpError], object] = combined_body
    """How the present dialect words errors."""
    _response: Response | None = None

    @property
    def response(self) -> Response:
        """The response; there is one when the exchange has ended."""
        assert self._response is not None, "the exchange has not ended"
        return self._response

    async def answer(
        self, body: object, *, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        """Answer with JSON, compressed when it is long and the caller takes it."""
        await self.answer_bytes(msgspec.json.encode(body), JSON, status=status, headers=headers)

    async def answer_bytes(
        self, body: bytes, media_type: str, *, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        """Answer with bytes of some other kind."""
        all_headers = {
            "x-request-id": self.call.request_id,
            "x-served-by": self.service.server_name,
            **(headers or {}),
        }
        self._response = await response_to(self.request, body, status, all_headers, media_type)
        self.call.status = str(status)

    def abandon(self) -> None:
        """Nobody reads an answer."""
        self.call.status = str(CLIENT_CLOSED_REQUEST)
        self._response = Response(status_code=CLIENT_CLOSED_REQUEST)

    async def fail(self, error: Exception) -> None:
        """Answer with an error."""
        described = http_error(error)
        if isinstance(error, RerankError):
            self.call.notes["reason"] = described.reason
            self.call.notes["error"] = described.message
        else:
            # A bug: the caller learns nothing of our insides, the log all of it.
            _log.error("internal error", exc_info=error)
        await self.answer(self.error_body(described), status=described.status, headers=described.headers)


async def unless_disconnected(request: Request, work: Awaitable[T]) -> T:
    """Await the work; cancel it when the caller hangs up.

    The body must have been read: what comes after it can only be the end of the connection.

    Raises:
        CallerGone: and nobody reads an answer.
    """
    task: asyncio.Future[T] = asyncio.ensure_future(work)
    hang_up: asyncio.Task[Any] = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({task, hang_up}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise CallerGone
        return task.result()
    finally:
        hang_up.cancel()
        task.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue
