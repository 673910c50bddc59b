"""The gRPC port, kept open: grpc.aio gives up its whole server over one malformed call.

A call whose method is not UTF-8 raises in grpc.aio's accepting loop (seen with grpcio 1.85),
which then shuts the server down, while the process with its model lives on. So the port is
opened again, which takes milliseconds; calls that were under way are CANCELLED, which
clients retry. It is a second line: one time in some hundred, grpcio takes the process with
it (a fault in its native code, not ours to mend), and the supervisor's restart is the third.
The first is Nginx, which at layer 7 lets no such call through.
"""

import asyncio
from collections.abc import Callable

import grpc.aio
import structlog

from server.config import Settings
from server.errors import ConfigurationError
from server.transport.api_keys import ApiKeys
from server.transport.grpc_server import bind, build_grpc_server

__all__ = ["GrpcFront"]

# The old server may hold the port for a moment.
REOPEN_ATTEMPTS = 50
REOPEN_PAUSE_S = 0.1
WATCH_INTERVAL_S = 0.03

_log = structlog.get_logger("rerank.grpc")


class GrpcFront:
    """A gRPC server on one port, and its successors on the same port when it gives up."""

    def __init__(
        self,
        settings: Settings,
        add_services: Callable[[grpc.aio.Server, int], None],
        keys: ApiKeys | None,
        on_gone: Callable[[str], None],
    ) -> None:
        """Listen, but answer nothing yet; call from the event loop that will serve.

        `on_gone` hears why when the port could not be opened again.

        Raises:
            ConfigurationError: the address is taken, or a file of keys or certificates is wrong.
        """
        self._settings = settings
        self._add_services = add_services
        self._keys = keys
        self._on_gone = on_gone
        self._stopping = False
        self._leaving: set[asyncio.Task[None]] = set()
        self._server = build_grpc_server(settings, keys)
        self.port = bind(self._server, settings)
        """Where it listens, also when the system was asked to choose."""
        add_services(self._server, self.port)
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Answer calls from now on."""
        await self._server.start()
        self._watch = asyncio.create_task(self._reopen_when_it_gives_up())

    async def stop(self, grace_s: float) -> None:
        """Close the port, say goodbye, and let accepted calls finish within `grace_s`."""
        # The watch ends with the server. Cancelling it would cancel the future that stop() waits for.
        self._stopping = True
        await self._server.stop(grace_s)

    async def _reopen_when_it_gives_up(self) -> None:
        while not self._stopping:
            try:
                # With a timeout, since only then it tells of a server that gave up but whose calls
                # have not ended; nobody would end those that it never got to accept.
                if await self._server.wait_for_termination(WATCH_INTERVAL_S):
                    continue
            except Exception as error:  # whatever grpc.aio's accepting loop died of
                _log.error("the gRPC library gave up its server; opening the port again", error=str(error))
            if self._stopping:
                return
            # Cancels its calls. Not waited for: a call that it never got to accept may keep it for
            # ever, while its port is closed already.
            self._leaving.add(leaving := asyncio.create_task(self._server.stop(None)))
            leaving.add_done_callback(self._forget)
            try:
                await self._reopen()
            except ConfigurationError as error:
                self._on_gone(str(error))
                return

    async def _reopen(self) -> None:
        settings = self._settings.model_copy(update={"port": self.port})
        for attempt in range(1, REOPEN_ATTEMPTS + 1):
            server = build_grpc_server(settings, self._keys)
            try:
                bind(server, settings)
            except ConfigurationError:
                if attempt == REOPEN_ATTEMPTS:
                    raise
                await asyncio.sleep(REOPEN_PAUSE_S)
                continue
            self._add_services(server, self.port)
            await server.start()
            self._server = server
            return

    def _forget(self, leaving: asyncio.Task[None]) -> None:
        self._leaving.discard(leaving)
        if not leaving.cancelled():
            # Of a server that crashed, stop() raises what it crashed of; that is logged already.
            leaving.exception()
