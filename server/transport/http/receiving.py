"""Request bodies as they arrive: bounded each and together, and not waited for in vain."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect, Request

from server.config import MIB, Settings
from server.engine.held_bytes import HeldBytes
from server.errors import TooLarge
from server.transport.http.errors import CallerGone, RequestTimeout

__all__ = ["PROGRESS_BYTES", "Bodies"]

# A body counts as arriving, and an answer as read, while this much moves in each --http-body-timeout.
PROGRESS_BYTES = 16 * 1024


class Bodies:
    """Reads bodies, and knows how much of all of them is in memory."""

    def __init__(self, settings: Settings) -> None:
        self._limit_bytes = settings.max_request_bytes
        self._held = HeldBytes(settings.receiving_mib * MIB, what="are arriving", option="--receiving-mib")
        self._timeout_s = settings.http_body_timeout_s

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytearray]:
        """A body as it was sent; it takes its room until the context ends.

        Raises:
            TooLarge: more than one request may have, by its header before anything is read, or by count.
            Overloaded: all bodies together are more than the server takes.
            RequestTimeout: it stopped arriving.
            CallerGone: so did the caller.
        """
        announced = request.headers.get("content-length", "")
        if announced.isdecimal():
            self._check(int(announced))
        body = bytearray()
        try:
            await self._receive(request, body)
            yield body
        finally:
            self._held.resize(len(body), 0)

    async def _receive(self, request: Request, body: bytearray) -> None:
        loop = asyncio.get_running_loop()
        progress = 0
        try:
            async with asyncio.timeout(self._timeout_s) as patience:
                async for piece in request.stream():
                    size = len(body) + len(piece)
                    self._check(size)
                    self._held.resize(len(body), size)
                    # Grows in place; joining pieces in the end would need the memory twice.
                    body += piece
                    progress += len(piece)
                    if progress >= PROGRESS_BYTES:
                        progress = 0
                        patience.reschedule(loop.time() + self._timeout_s)
        except TimeoutError:
            raise RequestTimeout(
                f"body: less than {PROGRESS_BYTES:,} bytes of it arrived in {self._timeout_s:g} s "
                "(--http-body-timeout); send it faster, or compress it"
            ) from None
        except ClientDisconnect:
            raise CallerGone from None

    def _check(self, size: int) -> None:
        if size > self._limit_bytes:
            raise TooLarge("body", "the request", actual=size, limit=self._limit_bytes, unit="bytes")
