"""Prometheus metrics on a port of their own: the HTTP front's server, on a thread and loop of its own.

So figures are there while the server's loop is busy, which is when they are wanted; a slow
client keeps nobody out; and TLS, keys and timeouts are those of the other ports.
"""

import asyncio
import threading

from prometheus_client import CollectorRegistry, make_asgi_app
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from server.config import Settings
from server.errors import Unauthenticated
from server.transport.api_keys import ApiKeys
from server.transport.http.server import HttpServer
from server.transport.ports import bound_socket

__all__ = ["MetricsServer"]

# Prometheus, a few people, and whoever is silent; the descriptors are for callers.
MAX_CONNECTIONS = 64


class MetricsServer:
    """Answers GET on `--metrics-port`, whatever the path."""

    def __init__(self, settings: Settings, registry: CollectorRegistry, keys: ApiKeys | None) -> None:
        """Bind the port; nothing is answered yet.

        Raises:
            ConfigurationError: the address is taken, or a TLS file is wrong.
        """
        listener = bound_socket(settings.host, settings.metrics_port, "--metrics-port")
        app: ASGIApp = make_asgi_app(registry)
        if keys is not None and settings.metrics_require_key:
            app = _with_key(app, keys)
        self._server = HttpServer(app, settings, listener, max_connections=MAX_CONNECTIONS)

    def start(self) -> None:
        """Answer from now on until the process ends."""
        threading.Thread(target=asyncio.run, args=(self._serve(),), name="metrics", daemon=True).start()

    async def _serve(self) -> None:
        await self._server.start()
        await asyncio.Event().wait()


def _with_key(app: ASGIApp, keys: ApiKeys) -> ASGIApp:
    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        answer = app
        try:
            keys.caller(headers.get("authorization"), headers.get("x-api-key"))
        except Unauthenticated as error:
            answer = PlainTextResponse(f"{error.message}\n", 401, {"www-authenticate": "Bearer"})
        await answer(scope, receive, send)

    return guarded
