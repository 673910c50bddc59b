"""HTTP calls that are open when a drain's time is over."""

import json
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from tests.compat.http_server import HttpServerProcess, post
from tests.support.waiting import wait_until


def test_calls_that_outlast_the_drain_are_sent_elsewhere(tmp_path: Path) -> None:
    """With 503 in the dialect's words, whether they compute or arrive; nothing of it is an error of ours."""
    texts = [f"text {'word ' * 20}{number}" for number in range(1000)]
    options = ("--drain-grace", "0.5", "--simulated-tokens-per-second", "1000")
    with HttpServerProcess(tmp_path, *options) as server, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(post, server, "/rerank", {"query": "q", "texts": texts})
        with socket.create_connection(("127.0.0.1", server.http_port), timeout=20) as arriving:
            arriving.sendall(
                b"POST /rerank HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 99\r\n\r\n"
            )
            assert arriving.recv(100).startswith(b"HTTP/1.1 100 ")
            wait_until(lambda: requests_in_progress(server) > 0, "the request to be worked on")
            server.signal(signal.SIGTERM)
            answer = asked.result(20)
            refusal = arriving.recv(65536)
        assert server.process.wait(15) == 0
    assert answer.status == 503
    assert answer.json["error_type"] == "Unhealthy"
    assert int(answer.headers["retry-after"]) >= 1
    assert refusal.startswith(b"HTTP/1.1 503 ")
    assert json.loads(refusal.partition(b"\r\n\r\n")[2])["error"]["reason"] == "DRAINING"
    log = server.log.read_text()
    assert '"level": "error"' not in log
    assert "Traceback" not in log


def requests_in_progress(server: HttpServerProcess) -> int:
    """How many requests have work in the queue or on the device."""
    count = httpx.get(server.url + "/info", trust_env=False, timeout=10).json()["server"]
    return int(count["requests_in_progress"])
