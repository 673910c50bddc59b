"""The life of a server: load, warm up, serve, drain, stop."""

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
import time
from typing import NoReturn

import grpc.aio
import structlog
from prometheus_client import generate_latest

from server.config import MIB, Settings
from server.engine.engine import Engine, EngineOptions
from server.engine.warmup import warm_up
from server.models.base import Model
from server.models.loading import load_model
from server.ops.health import HEALTH_SERVICE, RERANK_SERVICE, Health
from server.ops.logging import flush_logs
from server.ops.loop_errors import report_loop_errors
from server.ops.metrics import EngineMetrics
from server.ops.signals import listen_to_signals
from server.reranker import Limits, Reranker
from server.transport.api_keys import configured_keys
from server.transport.call import CallLog
from server.transport.grpc_front import GrpcFront
from server.transport.grpc_server import add_rerank_service, enable_reflection, preflight
from server.transport.grpc_service import RerankService
from server.transport.http.api import build_http_app
from server.transport.http.metrics import MetricsServer
from server.transport.http.receiving import Bodies
from server.transport.http.server import HttpServer, listen_http
from server.transport.http.service import HttpService, ServerLoad
from server.transport.tei.service import TEI_SERVICES, TeiService, add_tei_services
from server.transport.tls import configured_tls

__all__ = ["EXIT_DEVICE_LOST", "run"]

EXIT_FORCED = 1
EXIT_DEVICE_LOST = 70
WATCHDOG_INTERVAL_S = 0.5
CERTIFICATE_CHECK_S = 24 * 3600.0
# What is left open when the last call has been answered (health watches, idle streams) needs no more.
FAREWELL_S = 0.5
# How long a thread may go on with Python before another gets its turn. The event loop gives up
# its turn whenever it looks for news, several times for each call, and with Python's 5 ms would
# wait that long for each busy thread, each time.
THREAD_SWITCH_S = 0.0005
# For the answers of a server whose device hangs.
LAST_ANSWERS_S = 1.0
# For streams to be told that the drain's time is over, before gRPC would cut them off.
STREAMS_FAREWELL_S = 2.0

_log = structlog.get_logger("rerank.server")


def run(settings: Settings) -> int:
    """Serve until a signal says stop; returns the process's exit status.

    Raises:
        ConfigurationError: the server can't start with these settings.
    """
    sys.setswitchinterval(THREAD_SWITCH_S)
    preflight(settings)
    started_s = time.monotonic()
    _log.info("loading", model=settings.model, device=settings.device)
    model = load_model(settings)
    warm = warm_up(model, settings.token_budget or None)
    # What is here now stays: collections need not look through a framework again and again,
    # which stops all threads for a quarter of a second each time.
    gc.collect()
    gc.freeze()
    _log.info(
        "model ready",
        model=model.info.model_id,
        execution=model.info.execution,
        max_tokens=model.info.max_tokens,
        token_budget=warm.token_budget,
        tokens_per_second=round(warm.tokens_per_second),
        seconds=round(time.monotonic() - started_s, 1),
    )
    options = EngineOptions(
        token_budget=warm.token_budget,
        initial_tokens_per_second=warm.tokens_per_second,
        max_queued_tokens=settings.max_queued_tokens,
        queue_share=settings.queue_share,
        cache_bytes=settings.pair_cache_mib * MIB,
        first_come_first_served=settings.scheduling == "fifo",
    )
    return asyncio.run(Server(settings, model, options).serve())


class Server:
    """One engine behind one gRPC port, and one for HTTP if asked."""

    def __init__(self, settings: Settings, model: Model, options: EngineOptions) -> None:
        self._settings = settings
        self._model = model
        self._health = Health()
        self._metrics = EngineMetrics()
        self._engine = Engine(model, options, observer=self._metrics, on_lost=self._device_lost)
        self._metrics.watch(self._engine)
        self._reranker = Reranker(self._engine, model.info, _limits(settings))
        self._calls = CallLog(log_each=settings.log_requests)
        self._keys = configured_keys(settings)
        if self._keys is not None:
            self._keys.watch()
        self._stop = asyncio.Event()
        self._signalled = False
        self._exit_status = 0

    async def serve(self) -> int:
        """From the first call to the last; returns the process's exit status."""
        report_loop_errors(asyncio.get_running_loop())
        front = GrpcFront(self._settings, self._add_services, self._keys, on_gone=self._port_lost)
        name = self._server_name(front.port)
        if self._settings.metrics_port:
            MetricsServer(self._settings, self._metrics.registry, self._keys).start()
        await self._engine.start()
        loop = asyncio.get_running_loop()
        listen_to_signals(lambda number: self._on_signal(number, loop))
        http = self._http_server(name) if self._settings.http_port else None
        await front.start()
        if http is not None:
            await http.start()
        await self._health.set(serving=True)
        _log.info(
            "serving",
            host=self._settings.host,
            port=front.port,
            http_port=self._settings.http_port or None,
            name=name,
        )
        watchdog = asyncio.create_task(self._watch_device())
        certificate_watch = asyncio.create_task(self._watch_certificate())
        await self._stop.wait()
        watchdog.cancel()
        certificate_watch.cancel()
        await self._drain(front, http)
        return self._exit_status

    def _server_name(self, port: int) -> str:
        return self._settings.server_name or f"{socket.gethostname()}:{port}"

    def _add_services(self, server: grpc.aio.Server, port: int) -> None:
        name = self._server_name(port)
        add_rerank_service(server, RerankService(self._reranker, self._calls, name, self._settings))
        add_tei_services(server, TeiService(self._reranker, self._calls, name))
        self._health.attach(server)
        if self._settings.reflection:
            enable_reflection(server, RERANK_SERVICE, HEALTH_SERVICE, *TEI_SERVICES)

    def _http_server(self, name: str) -> HttpServer:
        settings, engine = self._settings, self._engine
        service = HttpService(
            reranker=self._reranker,
            calls=self._calls,
            server_name=name,
            keys=self._keys,
            serving=lambda: self._health.serving,
            load=lambda: ServerLoad(
                engine.queued_tokens, engine.tokens_per_second, engine.requests_in_progress
            ),
            metrics=lambda: generate_latest(self._metrics.registry),
            bodies=Bodies(settings),
            max_request_bytes=settings.max_request_bytes,
            return_documents=settings.http_return_documents,
            check_model=settings.http_check_model,
            playground=settings.playground,
        )
        return HttpServer(build_http_app(service), settings, listen_http(settings))

    async def _drain(self, front: GrpcFront, http: HttpServer | None) -> None:
        """NOT_SERVING, answer for a while, take nothing new, finish what was accepted, stop."""
        await self._health.set(serving=False)
        if self._exit_status == 0:
            _log.info("draining", delay_s=self._settings.drain_delay_s, grace_s=self._settings.drain_grace_s)
            # Balancers need a moment to notice; calls that still arrive are answered.
            await asyncio.sleep(self._settings.drain_delay_s)
        self._reranker.drain()
        self._calls.draining.set()
        # Closes the port and sends GOAWAY: clients whose connections were balanced, rather than
        # their calls, would otherwise come back to this server with every retry.
        goodbye = asyncio.create_task(front.stop(self._settings.drain_grace_s + STREAMS_FAREWELL_S))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._calls.idle.wait(), self._settings.drain_grace_s)
        unfinished = self._calls.in_progress
        self._calls.expired.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._calls.idle.wait(), STREAMS_FAREWELL_S)
        if http is not None:
            await http.stop()
        await front.stop(FAREWELL_S)
        await goodbye
        await self._engine.stop()
        self._model.close()
        _log.info("stopped", unfinished_calls=unfinished)

    def _on_signal(self, number: signal.Signals, loop: asyncio.AbstractEventLoop) -> None:
        """Called on a thread of its own, so that the second signal is obeyed whatever the loop does."""
        if self._signalled or self._stop.is_set():
            _log.warning("second signal: stopping at once", signal=number.name)
            _exit_at_once(EXIT_FORCED)
        self._signalled = True
        _log.info("stopping", signal=number.name)
        loop.call_soon_threadsafe(self._stop.set)

    def _device_lost(self, reason: str) -> None:
        _log.error("device lost; exiting so that a supervisor can restart the server", reason=reason)
        self._exit_status = EXIT_DEVICE_LOST
        self._stop.set()

    def _port_lost(self, reason: str) -> None:
        _log.error("the port is lost; exiting so that a supervisor can restart the server", reason=reason)
        self._exit_status = EXIT_DEVICE_LOST
        self._stop.set()

    async def _watch_device(self) -> None:
        """Notice a batch that never ends. Its thread can't be stopped, only the process can."""
        limit_s = self._settings.stuck_after_s
        while limit_s > 0:
            await asyncio.sleep(min(WATCHDOG_INTERVAL_S, limit_s / 4))
            busy_s = self._engine.busy_for_s()
            if busy_s > limit_s:
                await self._health.set(serving=False)
                _log.error("stuck: one batch exceeds --stuck-after; exiting", seconds=round(busy_s, 1))
                # Callers whose requests hang on the device must hear so: told nothing, they would take
                # them to the next server, and the next.
                self._engine.abandon(f"one batch took more than {limit_s:g} s")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._calls.idle.wait(), LAST_ANSWERS_S)
                _exit_at_once(EXIT_DEVICE_LOST)

    async def _watch_certificate(self) -> None:
        """Say every day that the certificate is about to expire, once it is."""
        while (files := configured_tls(self._settings)) is not None:
            files.warn_of_expiry()
            await asyncio.sleep(CERTIFICATE_CHECK_S)


def _exit_at_once(status: int) -> NoReturn:
    flush_logs()
    os._exit(status)


def _limits(settings: Settings) -> Limits:
    return Limits(
        max_documents=settings.max_documents,
        max_query_bytes=settings.max_query_kib * 1024,
        max_request_bytes=settings.max_request_bytes,
        max_windows_per_document=settings.max_windows_per_document,
        max_open_bytes=settings.open_requests_mib * MIB,
    )
