"""One caller's large requests leave room for others, end with their caller, and are charged."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from rerank.v1 import rerank_pb2, rerank_pb2_grpc

from server.transport.tei.v1 import tei_pb2
from tests.compat.http_server import HttpServerProcess
from tests.fuzz.large_texts import MAX_DOCUMENTS, long_query
from tests.fuzz.processors import ProcessorShare
from tests.support.waiting import wait_until

# Slow enough that the attack would take minutes, fast enough that small requests take milliseconds.
TOKENS_PER_S = 200_000
SMALL_CALLS = 30
SMALL_TIMEOUT_S = 5.0
# A pair of 8,000 tokens takes 40 ms; a small call may find two of them on the device.
MOST_SMALL_S = 1.0
ENDS_WITHIN_S = 1.0
KEY, OTHER_KEY = "key-of-the-attacker-0123", "key-of-somebody-else-0123"
TOKENS_PER_MINUTE = 10_000
HANG_UPS = 10
LEAVES_AFTER_S = 0.4
METADATA = (("authorization", f"Bearer {KEY}"),)

Leave = Callable[[HttpServerProcess, int], None]


def attack(priority: int, *, number: int = 0, **fields: Any) -> rerank_pb2.RerankRequest:
    """74 kB that stand for 33 million tokens."""
    return rerank_pb2.RerankRequest(
        query=f"{number} {long_query(7_990).decode()}",
        documents=[f"{number} {document}" for document in range(MAX_DOCUMENTS)],
        priority=priority,  # type: ignore[arg-type]
        **fields,
    )


ATTACKS = {
    "one as BATCH": [attack(rerank_pb2.PRIORITY_BATCH)],
    "one as INTERACTIVE": [attack(rerank_pb2.PRIORITY_INTERACTIVE)],
    "two as BATCH": [attack(rerank_pb2.PRIORITY_BATCH, number=number) for number in range(2)],
    "two as INTERACTIVE": [attack(rerank_pb2.PRIORITY_INTERACTIVE, number=number) for number in range(2)],
    "one of each": [attack(rerank_pb2.PRIORITY_BATCH), attack(rerank_pb2.PRIORITY_INTERACTIVE, number=1)],
    "windows as BATCH": [
        attack(rerank_pb2.PRIORITY_BATCH, truncation=rerank_pb2.TRUNCATION_CHUNK, max_tokens_per_document=1)
    ],
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HttpServerProcess]:
    speed = ("--simulated-tokens-per-second", str(TOKENS_PER_S))
    with HttpServerProcess(tmp_path, *speed) as server:
        yield server


def queued_tokens(server: HttpServerProcess) -> int:
    answer = httpx.get(f"{server.url}/info", timeout=10)
    return int(answer.json()["server"]["queued_tokens"])


@contextmanager
def attacked(server: HttpServerProcess, requests: Sequence[rerank_pb2.RerankRequest]) -> Iterator[None]:
    """While the requests are worked on, or have been refused; at the end their callers hang up."""
    # Closing the channel cancels its calls.
    with grpc.insecure_channel(server.address) as channel:
        stub: Any = rerank_pb2_grpc.RerankServiceStub(channel)
        calls = [stub.Rerank.future(request) for request in requests]
        wait_until(
            lambda: queued_tokens(server) > 0 or all(call.done() for call in calls), "the attack to begin"
        )
        yield


def small_calls(server: HttpServerProcess) -> list[float]:
    """Make small calls one after the other, which must all be answered; returns how long each took."""
    seconds = []
    with grpc.insecure_channel(server.address) as channel:
        stub = rerank_pb2_grpc.RerankServiceStub(channel)
        for number in range(SMALL_CALLS):
            request = rerank_pb2.RerankRequest(query=f"small {number}", documents=["one", "two"])
            started_s = time.monotonic()
            stub.Rerank(request, timeout=SMALL_TIMEOUT_S)
            seconds.append(time.monotonic() - started_s)
    return seconds


@pytest.mark.parametrize("name", ATTACKS)
def test_nobody_is_refused_beside_a_large_request(server: HttpServerProcess, name: str) -> None:
    """Interactive callers with a deadline of 5 s are all answered, and soon."""
    with attacked(server, ATTACKS[name]):
        processors = ProcessorShare(server.process.pid)
        seconds = small_calls(server)
        share = processors.now()
    assert share * max(seconds) < MOST_SMALL_S


def test_a_hang_up_ends_its_work(server: HttpServerProcess) -> None:
    """A second later nothing of it waits, and the device is free."""
    with attacked(server, ATTACKS["one as BATCH"]):
        pass
    left_s, processors = time.monotonic(), ProcessorShare(server.process.pid)
    wait_until(lambda: queued_tokens(server) == 0, "the queue to be empty")
    assert processors.now() * (time.monotonic() - left_s) < ENDS_WITHIN_S
    # A pair or two were on the device.
    computed = metric(server, "rerank_computed_tokens_total")
    time.sleep(ENDS_WITHIN_S / 2)
    assert metric(server, "rerank_computed_tokens_total") - computed < TOKENS_PER_S / 4


def metric(server: HttpServerProcess, name: str, **headers: str) -> float:
    """One of the figures for Prometheus."""
    text = httpx.get(f"{server.url}/metrics", headers=headers, timeout=10).text
    return float(next(line.split()[1] for line in text.splitlines() if line.startswith(f"{name} ")))


@pytest.fixture
def limited(tmp_path: Path) -> Iterator[HttpServerProcess]:
    keys = tmp_path / "keys"
    keys.write_text(f"attacker {KEY} tokens_per_minute={TOKENS_PER_MINUTE}\nother {OTHER_KEY}\n")
    with HttpServerProcess(
        tmp_path, "--api-keys-file", str(keys), "--simulated-tokens-per-second", "20000"
    ) as server:
        yield server


def texts(number: int) -> list[str]:
    """20,000 words in 50 documents, none of which any other number has."""
    return [" ".join(f"{number}_{document}_{word}" for word in range(400)) for document in range(50)]


def leave_grpc(server: HttpServerProcess, number: int) -> None:
    """Ask, and hang up after a moment."""
    request = rerank_pb2.RerankRequest(query="q", documents=texts(number))
    with grpc.insecure_channel(server.address) as channel:
        call: Any = rerank_pb2_grpc.RerankServiceStub(channel).Rerank.future(request, metadata=METADATA)
        time.sleep(LEAVES_AFTER_S)
        call.cancel()


def leave_stream(server: HttpServerProcess, number: int) -> None:
    """The same as one query of a stream that stays open meanwhile."""
    request = rerank_pb2.RerankRequest(query="q", documents=texts(number))
    left = threading.Event()

    def requests() -> Iterator[rerank_pb2.RerankStreamRequest]:
        yield rerank_pb2.RerankStreamRequest(id="1", request=request)
        left.wait(10)

    with grpc.insecure_channel(server.address) as channel:
        call: Any = rerank_pb2_grpc.RerankServiceStub(channel).RerankStream(requests(), metadata=METADATA)
        time.sleep(LEAVES_AFTER_S)
        call.cancel()
        left.set()


def leave_tei(server: HttpServerProcess, number: int) -> None:
    """The same through TEI's gRPC."""
    request = tei_pb2.RerankRequest(query="q", texts=texts(number), truncate=True)
    with grpc.insecure_channel(server.address) as channel:
        method: Any = channel.unary_unary("/tei.v1.Rerank/Rerank", tei_pb2.RerankRequest.SerializeToString)
        call = method.future(request, metadata=METADATA)
        time.sleep(LEAVES_AFTER_S)
        call.cancel()


def leave_http(server: HttpServerProcess, number: int) -> None:
    """The same over HTTP."""
    body = {"query": "q", "documents": texts(number)}
    with suppress(httpx.TimeoutException):
        httpx.post(f"{server.url}/rerank", json=body, headers=dict(METADATA), timeout=LEAVES_AFTER_S)


@pytest.mark.parametrize("leave", [leave_grpc, leave_stream, leave_tei, leave_http])
def test_hanging_up_does_not_evade_a_keys_limit(limited: HttpServerProcess, leave: Leave) -> None:
    """What was computed is charged, whoever still waits for it."""
    for number in range(HANG_UPS):
        leave(limited, number)
    # The request that used the last token may end, and a part of the minute's comes back meanwhile.
    computed = metric(limited, "rerank_computed_tokens_total", authorization=f"Bearer {OTHER_KEY}")
    assert computed < 2.5 * TOKENS_PER_MINUTE
