"""Connections: how many, how long they may dawdle, and how much they may send before it is a request.

uvicorn's protocol parses and dispatches; it trusts the peer to finish what it began.
"""

# The contracts of its public methods are asyncio's and httptools'.
# ruff: noqa: D102

import asyncio
import http
import resource
from dataclasses import dataclass, field
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server.config import Settings
from server.errors import NotReady, RerankError
from server.transport.http.errors import HeadTooLarge, RequestTimeout, combined_body, http_error

__all__ = ["BoundedProtocol", "Connections"]

# Of a request's path and headers, or of whatever else comes that is no body.
MAX_HEAD_BYTES = 32 * 1024
# Requests that may wait behind the one that is answered.
MAX_PIPELINED = 32
# An answer counts as read while this much of it leaves in each --http-body-timeout.
PROGRESS_BYTES = 16 * 1024


@dataclass(slots=True)
class Connections:
    """What all connections of one server share."""

    limit: int
    head_timeout_s: float
    body_timeout_s: float
    idle: "dict[BoundedProtocol, None]" = field(default_factory=dict)
    """Those without a request, whoever has waited longest first."""

    @classmethod
    def within(cls, settings: Settings) -> "Connections":
        """As the options say, and never all descriptors of the process: others need some."""
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return cls(
            limit=min(settings.http_max_connections, max(1, descriptors * 3 // 4)),
            head_timeout_s=settings.http_head_timeout_s,
            body_timeout_s=settings.http_body_timeout_s,
        )


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with bounds; one object is one connection."""

    def __init__(self, *, bounds: Connections, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self._bounds = bounds
        self._head_bytes = 0
        self._undelivered_bytes = 0
        """What came since the last sign of a request."""
        self._patience: asyncio.TimerHandle | None = None
        """Runs while the peer owes the rest of something that nobody else waits for."""
        self._stalled: asyncio.TimerHandle | None = None
        """Runs while the peer does not read."""

    # What asyncio tells.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._bounds.idle[self] = None
        self._wait_for_peer()
        if len(self.connections) > self._bounds.limit:
            longest = next(iter(self._bounds.idle))
            self._bounds.idle.pop(longest)
            if longest is not self:
                longest.transport.close()
            else:
                self._refuse(
                    NotReady(
                        f"this server has its {self._bounds.limit:,} connections (--http-max-connections, or "
                        "the limit of descriptors), all of them at work; come back, or call another one"
                    )
                )

    def connection_lost(self, exc: Exception | None) -> None:
        self._bounds.idle.pop(self, None)
        for timer in (self._patience, self._stalled):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._undelivered_bytes += len(data)
        super().data_received(data)
        if self._undelivered_bytes > MAX_HEAD_BYTES:
            self._refuse_head()
        elif self._between_requests:
            self._wait_for_peer()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait_for_reader()

    def resume_writing(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
        super().resume_writing()

    # What the parser tells. An exception here ends the parsing, and uvicorn the connection.

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            raise ValueError("too many requests on one connection at once")
        self._head_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        # Those after a chunked body come here as well.
        self._count_head(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._undelivered_bytes = 0
        self._bounds.idle.pop(self, None)
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._undelivered_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._undelivered_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._between_requests:
            self._bounds.idle[self] = None
            if self.cycle.more_body:
                self._wait_for_peer()

    def send_400_response(self, msg: str) -> None:
        if not self.transport.is_closing():
            super().send_400_response(msg)

    @property
    def _between_requests(self) -> bool:
        return self.cycle is None or (self.cycle.response_complete and not self.pipeline)

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse_head()
            raise ValueError("the head is too large")

    def _refuse_head(self) -> None:
        self._refuse(
            HeadTooLarge(f"the path and headers have more than {MAX_HEAD_BYTES:,} bytes; send fewer of them")
        )

    def _wait_for_peer(self) -> None:
        """Give it a while for the head of a request, or for the rest of a body that was refused."""
        if self._patience is None:
            self._patience = self.loop.call_later(self._bounds.head_timeout_s, self._lose_patience)

    def _lose_patience(self) -> None:
        if self._undelivered_bytes == 0:
            # Nothing was asked, or all of it is answered: another answer would be taken for the next one's.
            self.transport.close()
        self._refuse(
            RequestTimeout(
                f"the path and headers took more than {self._bounds.head_timeout_s:g} s "
                "(--http-head-timeout); send them at once"
            )
        )

    def _wait_for_reader(self) -> None:
        """Drop the peer when too little of the answer leaves; called again for as long as it reads."""
        unread = self.transport.get_write_buffer_size()

        def check() -> None:
            if self.transport.get_write_buffer_size() > unread - PROGRESS_BYTES:
                self.transport.abort()
            else:
                self._wait_for_reader()

        self._stalled = self.loop.call_later(self._bounds.body_timeout_s, check)

    def _refuse(self, error: RerankError) -> None:
        """Say why, unless an answer is on its way, and close."""
        if self.transport.is_closing():
            return
        if self._between_requests:
            described = http_error(error)
            body = msgspec.json.encode(combined_body(described))
            headers = {
                **described.headers,
                "content-type": "application/json",
                "content-length": str(len(body)),
                "connection": "close",
            }
            lines = [f"HTTP/1.1 {described.status} {http.HTTPStatus(described.status).phrase}"]
            lines += [f"{name}: {value}" for name, value in headers.items()]
            self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        self.transport.close()
