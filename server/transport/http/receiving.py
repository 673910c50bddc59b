"""Request bodies as they arrive: bounded each and together, and not waited for in vain."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect, Request

from server.config import Settings
from server.errors import Overloaded, TooLarge
from server.transport.http.errors import CallerGone, RequestTimeout
from server.transport.offload import SMALL_BYTES

__all__ = ["Bodies"]

# A body counts as arriving while this much of it comes in each --http-body-timeout.
PROGRESS_BYTES = 16 * 1024
FULL_RETRY_AFTER_S = 1.0
MIB = 1024 * 1024


class Bodies:
    """Reads bodies, and knows how much of all of them is in memory.

    The first `SMALL_BYTES` of each are free: whoever fills the room with large bodies that
    arrive slowly keeps out large ones only.
    """

    def __init__(self, settings: Settings) -> None:
        self._limit_bytes = settings.max_request_bytes
        self._room_bytes = settings.http_receiving_mib * MIB
        self._timeout_s = settings.http_body_timeout_s
        self._held_bytes = 0

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
            self._held_bytes -= _counted(len(body))

    async def _receive(self, request: Request, body: bytearray) -> None:
        loop = asyncio.get_running_loop()
        progress = 0
        try:
            async with asyncio.timeout(self._timeout_s) as patience:
                async for piece in request.stream():
                    size = len(body) + len(piece)
                    self._check(size)
                    self._hold(_counted(size) - _counted(len(body)))
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

    def _hold(self, more: int) -> None:
        if self._held_bytes + more > self._room_bytes:
            raise Overloaded(
                f"body: {self._held_bytes:,} bytes of other requests are arriving, and there is room for "
                f"{self._room_bytes:,} (--http-receiving-mib); come back, or send less at once",
                retry_after_s=FULL_RETRY_AFTER_S,
            )
        self._held_bytes += more


def _counted(size: int) -> int:
    return max(0, size - SMALL_BYTES)
