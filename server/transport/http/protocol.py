"""One connection: how long it may dawdle, and how much it may send before it is a request.

uvicorn's protocol parses and dispatches; it trusts the peer to finish what it began.
"""

# The contracts of its public methods are asyncio's and httptools'.
# ruff: noqa: D102

import asyncio
import http
import ssl
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server.errors import NotReady, RerankError
from server.transport.http.connections import Connections
from server.transport.http.errors import HeadTooLarge, RequestTimeout, combined_body, http_error
from server.transport.http.receiving import PROGRESS_BYTES

__all__ = ["BoundedProtocol"]

# Of a request's path and headers, or of whatever else comes that is no body.
MAX_HEAD_BYTES = 32 * 1024
# Requests that may wait behind the one that is answered.
MAX_PIPELINED = 32


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with bounds; one object is one connection, from before its TLS handshake."""

    def __init__(self, *, bounds: Connections, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self._bounds = bounds
        self._raw: asyncio.Transport
        """The transport below TLS, or without TLS uvicorn's own."""
        self._handshake: asyncio.Task[None] | None = None
        self._early = b""
        """What came between the handshake and the notice of its end."""
        self._head_bytes = 0
        self._undelivered_bytes = 0
        """What came since the last sign of a request."""
        self._patience: asyncio.TimerHandle | None = None
        """Runs while the peer owes the rest of something that nobody else waits for."""
        self._stalled: asyncio.TimerHandle | None = None
        """Runs while the peer has an answer to read, or a close to notice."""

    # What asyncio tells.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._raw = transport
        self._bounds.open.add(self)
        self._bounds.waiting[self] = self.loop.time()
        self._wait_for_peer()
        room = self._bounds.make_room(self, self.loop.time())
        if self._bounds.tls is None:
            self._begin(transport, room)
        else:
            # uvicorn would begin TLS itself, and nobody would count the connection until it is there.
            transport.pause_reading()
            self._handshake = self.loop.create_task(self._secure(self._bounds.tls, room))

    async def _secure(self, context: ssl.SSLContext, room: bool) -> None:
        try:
            transport = await self.loop.start_tls(self._raw, self, context, server_side=True)
        except OSError:
            # No TLS, no certificate, or no more peer: theirs to know, and nothing to log.
            transport = None
        if transport is None or self not in self._bounds.open:
            self._forget()
        else:
            self._begin(transport, room)
            if self._early:
                self.data_received(self._early)
                self._early = b""

    def _begin(self, transport: asyncio.Transport, room: bool) -> None:
        super().connection_made(transport)
        if not room:
            self._refuse(
                NotReady(
                    f"this server has its {self._bounds.limit:,} connections (--http-max-connections, or "
                    "the limit of descriptors), all of them at work; come back, or call another one"
                )
            )

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        if self.transport is not None:
            super().connection_lost(exc)

    def _forget(self) -> None:
        self._bounds.forget(self)
        for timer in (self._patience, self._stalled):
            if timer is not None:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        if self.transport is None:
            self._early += data
            return
        self._undelivered_bytes += len(data)
        super().data_received(data)
        if self._undelivered_bytes > MAX_HEAD_BYTES:
            self._refuse_head()
        elif self._between_requests:
            self._wait_for_peer()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._note_turn()
        self._wait_for_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._note_turn()

    # What uvicorn's own timer tells.

    def timeout_keep_alive_handler(self) -> None:
        self._end()

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
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        super().on_headers_complete()
        self._note_turn(anew=True)

    def on_body(self, body: bytes) -> None:
        self._undelivered_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._undelivered_bytes = 0
        super().on_message_complete()
        self._note_turn()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._note_turn(anew=True)
        self._wait_for_reader()
        if self._between_requests and self.cycle.more_body:
            self._wait_for_peer()

    def send_400_response(self, msg: str) -> None:
        if not self.transport.is_closing():
            super().send_400_response(msg)
            self._end()

    # Whose turn it is.

    @property
    def dispensable(self) -> bool:
        return self.transport is None or (
            (self._between_requests or self.transport.is_closing()) and self._unread_bytes == 0
        )

    def drop(self) -> None:
        if self.transport is not None and self._request_arrives and not self.cycle.response_started:
            self._write(
                RequestTimeout(
                    f"the request took more than {self._bounds.body_timeout_s:g} s (--http-body-timeout) "
                    "while others waited for its connection (--http-max-connections); send it faster, or "
                    "compress it"
                )
            )
        # Closing would wait, for the buffer to be read or for TLS' goodbye.
        (self._raw if self.transport is None else self.transport).abort()

    @property
    def _between_requests(self) -> bool:
        return self.cycle is None or (self.cycle.response_complete and not self.pipeline)

    @property
    def _request_arrives(self) -> bool:
        return self.cycle is not None and self.cycle.more_body and not self.pipeline

    @property
    def _unread_bytes(self) -> int:
        unread = self._raw.get_write_buffer_size()
        # TLS hands on what it has encrypted, and then no longer knows of it.
        return unread if self.transport is self._raw else unread + self.transport.get_write_buffer_size()

    def _note_turn(self, *, anew: bool = False) -> None:
        """Keep the list of who waits for a peer; `anew` begins the waiting again."""
        waiting = self._bounds.waiting
        waits = self._between_requests or self._request_arrives or self.flow.write_paused
        if anew or not waits:
            waiting.pop(self, None)
        if waits:
            waiting.setdefault(self, self.loop.time())

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
        if self.transport is None:
            self._raw.abort()
        elif self._undelivered_bytes == 0:
            # Nothing was asked, or all of it is answered: another answer would be taken for the next one's.
            self._end()
        else:
            self._refuse(
                RequestTimeout(
                    f"the path and headers took more than {self._bounds.head_timeout_s:g} s "
                    "(--http-head-timeout); send them at once"
                )
            )

    def _wait_for_reader(self) -> None:
        """Drop the peer when too little of the answer leaves; called again for as long as it reads."""
        if self._stalled is not None:
            self._stalled.cancel()
        unread = self._unread_bytes
        # Below the high-water mark asyncio says nothing, and closing waits for the last byte.
        if unread == 0 and not self.transport.is_closing():
            return

        def check() -> None:
            if 0 < self._unread_bytes <= unread - PROGRESS_BYTES:
                self._wait_for_reader()
            elif self._unread_bytes > 0 or self.transport.is_closing():
                self.transport.abort()

        self._stalled = self.loop.call_later(self._bounds.body_timeout_s, check)

    def _refuse(self, error: RerankError) -> None:
        """Say why, unless an answer is on its way, and close."""
        if self._between_requests:
            self._write(error)
        self._end()

    def _write(self, error: RerankError) -> None:
        if self.transport.is_closing():
            return
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

    def _end(self) -> None:
        """Close when all of the answer is read, and not much later in any case."""
        self.transport.close()
        self._wait_for_reader()
