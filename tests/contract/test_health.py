"""The health service under clients that mean no good: it needs no key, so strangers may call it."""

import signal
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2

from server.ops.health import MAX_WATCHES
from tests.fuzz.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PREFACE,
    call_headers,
    frame,
    grpc_message,
    header_block,
)
from tests.support.calls import health_stub
from tests.support.server_process import ServerProcess
from tests.support.waiting import wait_until

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SETTINGS, INITIAL_WINDOW_SIZE = 0x4, 0x4
WATCH = "/grpc.health.v1.Health/Watch"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path, "--drain-delay", "2") as running:
        yield running


def watch_without_reading(server: ServerProcess) -> socket.socket:
    """An open Watch whose client allows the server to send nothing at all."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    connection.sendall(
        PREFACE
        + frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, 0))
        + frame(HEADERS, END_HEADERS, 1, header_block(call_headers(method=WATCH)))
        + frame(DATA, END_STREAM, 1, grpc_message(b""))
    )
    # The server's settings and headers: it has read the call.
    wait_until(lambda: b"\x00\x00\x00\x01" in connection.recv(65536), "the headers of the answer")
    return connection


def test_a_watcher_that_reads_nothing_holds_up_nobody(server: ServerProcess) -> None:
    """Neither other watchers, nor SIGTERM: the drain begins within a second, and everybody hears of it."""
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(watch_without_reading(server))
        channel = stack.enter_context(grpc.insecure_channel(server.address))
        watch = health_stub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=20)
        assert next(watch).status == SERVING
        server.signal(signal.SIGTERM)
        wait_until(lambda: '"draining"' in server.log.read_text(), "the drain to begin", timeout_s=1)
        assert next(watch).status == NOT_SERVING
        assert server.process.wait(20) == 0


def test_watches_are_bounded(server: ServerProcess) -> None:
    """Those over the limit are refused in words, checks are answered, and a place that is left is free."""
    with ExitStack() as stack:
        # Two connections, since one may not have so many calls.
        stub, other = (
            health_stub(
                stack.enter_context(
                    grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)])
                )
            )
            for _ in range(2)
        )
        request = health_pb2.HealthCheckRequest()
        watches = [
            (stub if number % 2 else other).Watch(request, timeout=120) for number in range(MAX_WATCHES)
        ]
        assert all(next(watch).status == SERVING for watch in watches)
        refused = stub.Watch(request, timeout=20)
        with pytest.raises(grpc.RpcError) as raised:
            next(refused)
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert f"{MAX_WATCHES} Watch calls" in str(raised.value)
        assert stub.Check(request, timeout=10).status == SERVING
        watches.pop().cancel()
        wait_until(lambda: _is_let_in(stub), "the place to be free")
        for watch in watches:
            watch.cancel()


def _is_let_in(stub: object) -> bool:
    watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=20)  # type: ignore[attr-defined]
    try:
        return bool(next(watch).status == SERVING)
    except grpc.RpcError:
        return False
    finally:
        watch.cancel()


def test_unknown_services_are_told_as_the_standard_says(server: ServerProcess) -> None:
    """Check is NOT_FOUND, Watch waits with SERVICE_UNKNOWN, and the service's own name is known."""
    with grpc.insecure_channel(server.address) as channel:
        stub = health_stub(channel)
        unknown = health_pb2.HealthCheckRequest(service="nobody")
        with pytest.raises(grpc.RpcError) as raised:
            stub.Check(unknown, timeout=10)
        assert raised.value.code() is grpc.StatusCode.NOT_FOUND
        watch = stub.Watch(unknown, timeout=10)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        watch.cancel()
        known = health_pb2.HealthCheckRequest(service="rerank.v1.RerankService")
        assert stub.Check(known, timeout=10).status == SERVING
