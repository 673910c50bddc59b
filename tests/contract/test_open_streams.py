"""Streams that are open when a server drains."""

import asyncio
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from rerank.v1 import rerank_pb2, rerank_pb2_grpc

from tests.support.server_process import ServerProcess

STREAMS = 100
PATIENCE_S = 30.0


class OpenStream:
    """A stream that has had an answer and stays open; busy ones then ask more than can be answered."""

    def __init__(self, stub: Any) -> None:
        self.call = stub.RerankStream(timeout=PATIENCE_S)
        self.answers: list[rerank_pb2.RerankStreamResponse] = []

    async def begin(self) -> None:
        await self.call.write(_asked("first", 1))
        answer = await self.call.read()
        assert isinstance(answer, rerank_pb2.RerankStreamResponse)
        self.answers.append(answer)

    async def ask(self, documents: int) -> None:
        await self.call.write(_asked("more", documents))

    async def end(self) -> tuple[grpc.StatusCode, str]:
        """How the server ends it, and the reason in its trailers."""
        try:
            while isinstance(answer := await self.call.read(), rerank_pb2.RerankStreamResponse):
                self.answers.append(answer)
        except grpc.aio.AioRpcError:
            pass
        trailers = dict(await self.call.trailing_metadata() or ())
        error = rerank_pb2.Error.FromString(trailers.get("rerank-error-bin", b""))
        return await self.call.code(), error.reason


def _asked(name: str, documents: int) -> rerank_pb2.RerankStreamRequest:
    texts = [f"{'word ' * 50}{name} {number}" for number in range(documents)]
    return rerank_pb2.RerankStreamRequest(
        id=name, request=rerank_pb2.RerankRequest(query=name, documents=texts)
    )


async def ends(
    server: ServerProcess, documents: list[int]
) -> tuple[list[OpenStream], Counter[tuple[grpc.StatusCode, str]]]:
    """Open a stream for each number, ask that many documents on it (0: stay idle), drain, and wait."""
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub: Any = rerank_pb2_grpc.RerankServiceStub(channel)
        streams = [OpenStream(stub) for _ in documents]
        for stream in streams:
            await stream.begin()
        for stream, number in zip(streams, documents, strict=True):
            if number:
                await stream.ask(number)
        # So that what was asked has been read.
        last = OpenStream(stub)
        await last.begin()
        last.call.cancel()
        server.signal(signal.SIGTERM)
        return streams, Counter(await asyncio.gather(*(stream.end() for stream in streams)))


@pytest.mark.parametrize("busy", [0, STREAMS // 2, STREAMS])
async def test_open_streams_are_sent_elsewhere(tmp_path: Path, busy: int) -> None:
    """Idle ones and those whose answers would come too late end UNAVAILABLE, which clients retry."""
    # Busy streams have asked for hours of work.
    documents = [2000] * busy + [0] * (STREAMS - busy)
    with ServerProcess(tmp_path, "--drain-grace", "1", "--max-queued-tokens", "1000000000") as server:
        _, seen = await ends(server, documents)
        assert server.process.wait(15) == 0
    assert seen == {(grpc.StatusCode.UNAVAILABLE, "DRAINING"): STREAMS}
    assert "Traceback" not in server.log.read_text()
    assert '"level": "error"' not in server.log.read_text()


async def test_idle_streams_do_not_keep_a_server(tmp_path: Path) -> None:
    """A stream with nothing to answer ends when the drain's delay does, and not with its grace."""
    with ServerProcess(tmp_path, "--drain-grace", "3600") as server:
        _, seen = await ends(server, [0] * 10)
        assert server.process.wait(15) == 0
    assert seen == {(grpc.StatusCode.UNAVAILABLE, "DRAINING"): 10}


async def test_what_a_stream_was_promised_is_answered_first(tmp_path: Path) -> None:
    """Queries that were accepted before the drain are answered within its grace."""
    with ServerProcess(tmp_path, "--drain-grace", "60", "--simulated-tokens-per-second", "20000") as server:
        streams, seen = await ends(server, [40] * 10)
        assert server.process.wait(15) == 0
    assert seen == {(grpc.StatusCode.UNAVAILABLE, "DRAINING"): 10}
    assert all([answer.id for answer in stream.answers] == ["first", "more"] for stream in streams)
    assert all(len(stream.answers[1].response.results) == 40 for stream in streams)
