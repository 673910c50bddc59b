"""Answers on their way: compressed when they are long, and sent no faster than they are read."""

import gzip
from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.transport.http.encodings import accepts_gzip
from server.transport.offload import SMALL_BYTES, off_loop

__all__ = ["response_to"]

# Below this, compressing costs more than it saves.
MIN_GZIP_BYTES = 8 * 1024
PIECE_BYTES = 256 * 1024


async def response_to(
    request: Request, body: bytes, status: int, headers: Mapping[str, str], media_type: str
) -> Response:
    """The response, compressed when the body is long and the caller takes it."""
    headers = dict(headers)
    if len(body) >= MIN_GZIP_BYTES:
        headers["vary"] = "accept-encoding"
        if accepts_gzip(",".join(request.headers.getlist("accept-encoding"))):
            body = await off_loop(_compressed, body) if len(body) >= SMALL_BYTES else _compressed(body)
            headers["content-encoding"] = "gzip"
    return _InPieces(body, status, headers, media_type)


def _compressed(body: bytes) -> bytes:
    return gzip.compress(body, compresslevel=1)


class _InPieces(Response):
    """A response of which the server buffers a piece, and not a copy of the whole."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        body = memoryview(self.body)
        for start in range(0, max(1, len(body)), PIECE_BYTES):
            end = start + PIECE_BYTES
            more = end < len(body)
            await send({"type": "http.response.body", "body": body[start:end], "more_body": more})
