"""uvicorn inside the server's own event loop: no signals of its own, no start before it is told to."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from functools import partial

import uvicorn
from starlette.types import ASGIApp

from server.config import Settings
from server.transport.http.connections import Connections
from server.transport.http.protocol import BoundedProtocol
from server.transport.ports import bound_socket

__all__ = ["HttpServer", "listen_http"]

# Longer than a proxy keeps its connections: the proxy closes first, and never sends into a closed one.
KEEP_ALIVE_S = 90
BACKLOG = 2048
# How long answers that are on their way may take once the server stops.
FAREWELL_S = 2


class HttpServer:
    """Serves one application on one socket."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        listener: socket.socket,
        *,
        max_connections: int | None = None,
    ) -> None:
        """`max_connections` is what the options say unless it is given.

        Raises:
            ConfigurationError: a TLS file can't be read or used.
        """
        self._listener = listener
        config = uvicorn.Config(
            app,
            # Logging belongs to the server; each call has its line already.
            log_config=None,
            log_level="warning",
            access_log=False,
            lifespan="off",
            server_header=False,
            http="httptools",
            loop="none",
            ws="none",
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=FAREWELL_S,
            backlog=BACKLOG,
        )
        config.load()
        bounds = Connections.within(settings, max_connections or settings.http_max_connections)
        config.http_protocol_class = partial(  # type: ignore[assignment]  # it is only ever called
            BoundedProtocol, bounds=bounds
        )
        self._server = _Uvicorn(config)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Return when requests are answered."""
        self._task = asyncio.create_task(self._server.serve(sockets=[self._listener]))
        await self._server.listening.wait()

    async def stop(self) -> None:
        """Take no more connections, let answers that are on their way arrive, and close."""
        self._server.should_exit = True
        if self._task is not None:
            await self._task


class _Uvicorn(uvicorn.Server):
    """uvicorn without its signal handlers, and with a way to know that it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # Signals are the business of server.app, which drains both protocols together.
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()


def listen_http(settings: Settings) -> socket.socket:
    """A socket that is bound and does not listen yet.

    Raises:
        ConfigurationError: the address is taken or is not one of this machine.
    """
    return bound_socket(settings.host, settings.http_port, "--http-port")
