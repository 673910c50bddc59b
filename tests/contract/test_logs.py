"""The log of a real server whose reader is slow, gone, or fed with lies."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import grpc
import httpx
import pytest
from rerank.v1 import rerank_pb2, rerank_pb2_grpc

from tests.compat.http_server import HttpServerProcess
from tests.support.calls import LARGE_MESSAGES, failure_of
from tests.support.ports import free_port
from tests.support.server_process import ServerProcess
from tests.support.waiting import wait_until

PIPE_BYTES = 4096
FLOOD_CALLS = 5_000
"""More log lines than fit into the pipe and the queue before it."""
HANG_UPS = 10
BIG_ANSWERS, DOCUMENTS = 8, 3
PATIENCE_S = 60


class PipedServer(ServerProcess):
    """A server whose log goes into a pipe that is read when the test says so."""

    def start(self) -> None:
        self.log.touch()
        self.reader, writer = os.pipe()
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._process = subprocess.Popen(
            self.command, stdin=subprocess.DEVNULL, stdout=writer, stderr=writer, start_new_session=True
        )
        os.close(writer)

    def wait_ready(self) -> None:
        """Return once the server says that it is serving; nobody reads its log meanwhile."""
        wait_until(lambda: self.health() == 1, "the server to serve", timeout_s=60)

    def read_log(self) -> threading.Thread:
        """Begin to read into the log file."""

        def read() -> None:
            with self.log.open("ab") as log:
                while some := os.read(self.reader, 65536):
                    log.write(some)
                    log.flush()

        reading = threading.Thread(target=read, daemon=True)
        reading.start()
        return reading


def figure(metrics_port: int, name: str) -> float:
    """One of the server's metrics."""
    figures = httpx.get(f"http://127.0.0.1:{metrics_port}/metrics", trust_env=False, timeout=10).text
    (value,) = [float(line.split()[1]) for line in figures.splitlines() if line.startswith(f"{name} ")]
    return value


def flood(stub: rerank_pb2_grpc.RerankServiceStub) -> float:
    """Make many calls, a hundred at a time; returns the longest time between two answers, in seconds."""
    longest_s = 0.0
    before_s = time.monotonic()
    for _ in range(FLOOD_CALLS // 100):
        calls = [stub.GetModel.future(rerank_pb2.GetModelRequest(), timeout=30) for _ in range(100)]
        for call in calls:
            call.result()
            now_s = time.monotonic()
            longest_s = max(longest_s, now_s - before_s)
            before_s = now_s
    return longest_s


def test_a_log_that_nobody_reads_stops_nobody(tmp_path: Path) -> None:
    """Calls are answered, lines are dropped and counted, and the log says so once it is read again."""
    metrics_port = free_port()
    with PipedServer(tmp_path, "--metrics-port", str(metrics_port)) as server:
        with grpc.insecure_channel(server.address) as channel:
            assert flood(rerank_pb2_grpc.RerankServiceStub(channel)) < 5
        assert server.health() == 1
        assert figure(metrics_port, "rerank_log_lines_dropped_total") > 0
        reading = server.read_log()
        wait_until(lambda: "log lines dropped" in server.log.read_text(), "the log to say it")
        assert server.stop() == 0
        reading.join(10)
    assert '"event": "stopped"' in server.log.read_text()


def test_a_server_ends_although_nobody_reads_its_log(tmp_path: Path) -> None:
    """SIGTERM drains, and the second signal ends, a server whose log is stuck."""
    for signals, status in ((1, 0), (2, 1)):
        with PipedServer(tmp_path, "--drain-delay", "0.1" if signals == 1 else "60") as server:
            with grpc.insecure_channel(server.address) as channel:
                flood(rerank_pb2_grpc.RerankServiceStub(channel))
            server.signal(signal.SIGTERM)
            if signals == 2:
                wait_until(lambda: server.health() == 2, "the drain to begin")
                server.signal(signal.SIGTERM)
            assert server.process.wait(15) == status


def test_what_a_request_says_is_short_in_the_log(tmp_path: Path) -> None:
    """A model's name of 1 MB is quoted in part."""
    with ServerProcess(tmp_path) as server:
        with grpc.insecure_channel(server.address, options=LARGE_MESSAGES) as channel:
            request = rerank_pb2.RerankRequest(query="q", documents=["a"], model="m" * 1_000_000)
            assert failure_of(channel, request).code() is grpc.StatusCode.NOT_FOUND
        wait_until(lambda: "NOT_FOUND" in server.log.read_text(), "the call in the log")
        assert max(map(len, server.log.read_text().splitlines())) < 5_000


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_what_a_request_says_stays_on_its_line(tmp_path: Path, log_format: str) -> None:
    """Neither line ends nor a terminal's escapes of a request's get into the log as they are."""
    forged = "\nforged\x1b[2J\u2028"
    with HttpServerProcess(tmp_path, "--log-format", log_format) as server:
        httpx.get(f"{server.url}/{quote(forged)}", trust_env=False, timeout=10)
        with grpc.insecure_channel(server.address) as channel:
            failure_of(channel, rerank_pb2.RerankRequest(query="q", documents=["a"], model=forged))
        wait_until(lambda: "NOT_FOUND" in server.log.read_text(), "the call in the log")
    said = server.log.read_text()
    assert "forged" in said
    assert "\x1b" not in said
    assert "\u2028" not in said
    assert not any(line.lstrip().startswith("forged") for line in said.split("\n"))


REPEATING = """
import logging, time
from server.ops.logging import configure_logging, flush_logs
configure_logging("info", "json")
loop = logging.getLogger("asyncio")
for number in range(50_000):
    loop.error("socket.accept() out of system resources", exc_info=OSError(24, "Too many open files"))
logging.getLogger("other").error("something else")
for number in range(100):
    logging.getLogger("calls").info("call")
time.sleep(2.5)
flush_logs()
"""


def test_an_error_that_repeats_does_not_flood_the_log() -> None:
    """A few lines a second, how many were left out, and every other line."""
    done = subprocess.run(
        [sys.executable, "-c", REPEATING], capture_output=True, text=True, timeout=60, check=True
    )
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    by_event: dict[str, int] = {}
    for line in lines:
        by_event[line["event"]] = by_event.get(line["event"], 0) + 1
    repeated = by_event["socket.accept() out of system resources"]
    assert repeated < 1000
    assert by_event["something else"] == 1
    assert by_event["call"] == 100
    left_out = [line for line in lines if line["event"] == "repeated lines left out"]
    assert sum(line["lines"] for line in left_out) + repeated == 50_000
    assert "socket.accept" in left_out[0]["said"]


def hang_up_on_answers(address: str, answered: Callable[[], bool]) -> None:
    """Ask for more than fits into a connection, take nothing of it, and cancel while it is written."""

    def queries() -> Iterator[rerank_pb2.RerankStreamRequest]:
        for number in range(BIG_ANSWERS):
            documents = [f"{number} {place} {'x' * 300_000}" for place in range(DOCUMENTS)]
            request = rerank_pb2.RerankRequest(query="q", documents=documents, return_documents=True)
            yield rerank_pb2.RerankStreamRequest(id=str(number), request=request)
        asked.wait(PATIENCE_S)

    asked = threading.Event()
    with grpc.insecure_channel(address) as channel:
        call = rerank_pb2_grpc.RerankServiceStub(channel).RerankStream(queries(), timeout=PATIENCE_S)
        wait_until(answered, "the answers")
        call.cancel()
        asked.set()


def test_a_client_that_hangs_up_on_an_answer_is_no_error(tmp_path: Path) -> None:
    """Its call has a line like any other, and there is no traceback."""
    metrics_port = free_port()

    def pairs() -> float:
        return figure(metrics_port, "rerank_computed_pairs_total")

    options = ("--metrics-port", str(metrics_port), "--pair-cache-mib", "0")
    with ServerProcess(tmp_path, *options) as server:
        for _ in range(HANG_UPS):
            most = pairs() + BIG_ANSWERS * DOCUMENTS
            hang_up_on_answers(server.address, lambda most=most: pairs() >= most)  # type: ignore[misc]
        # Most of them CANCELLED; a call whose last answer was just written is OK.
        said = '"method": "RerankStream"'
        wait_until(lambda: server.log.read_text().count(said) == HANG_UPS, "the calls in the log")
    assert "CANCELLED" in server.log.read_text()
    assert "Traceback" not in server.log.read_text()
    assert '"level": "error"' not in server.log.read_text()


WRONG_CALLS = """
import logging
from server.ops.logging import configure_logging, flush_logs
configure_logging("info", "json")
logging.getLogger("library").warning("%d documents", "x")
logging.getLogger("library").info("%s and %s", "one")
logging.getLogger("library").info("afterwards")
flush_logs()
"""


def test_a_wrong_log_call_fails_nobody() -> None:
    """It becomes a line that says where it is, and its caller goes on."""
    done = subprocess.run(
        [sys.executable, "-c", WRONG_CALLS], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second, third = (json.loads(line) for line in done.stderr.splitlines())
    for line, level in ((first, "warning"), (second, "info")):
        assert line["event"] == "a log line could not be rendered"
        assert (line["logger"], line["level"]) == ("library", level)
        assert "TypeError" in line["error"]
        assert line["where"].startswith("<string>:")
    assert third["event"] == "afterwards"
