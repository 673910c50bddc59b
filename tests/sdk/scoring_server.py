"""A real gRPC server of the contract with deterministic scores, which fails when told to."""

import hashlib
import math
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from rerank.v1 import rerank_pb2 as wire
from rerank.v1 import rerank_pb2_grpc

__all__ = ["Fail", "Hang", "ScoringServer", "Seen", "Step", "logit_of", "unscripted_answer"]

# So few that ties are common, and so large that different ones round to the same score.
LOGITS = (-60.0, -3.25, -0.0, 0.5, 0.5000000596046448, 7.125, 40.0, 41.0)

UNSCORABLE = "unscorable"


@dataclass(frozen=True)
class Fail:
    """An attempt that ends with this status."""

    code: grpc.StatusCode
    details: str = "scripted"
    error: wire.Error | None = None
    pushback_ms: int | None = None

    def abort(self, context: grpc.ServicerContext, served_by: str) -> None:
        trailers: list[tuple[str, str | bytes]] = [("x-served-by", served_by)]
        if self.error:
            trailers.append(("rerank-error-bin", self.error.SerializeToString()))
        if self.pushback_ms is not None:
            trailers.append(("grpc-retry-pushback-ms", str(self.pushback_ms)))
        context.set_trailing_metadata(tuple(trailers))
        context.abort(self.code, self.details)


Step = Fail | Callable[[wire.RerankRequest, grpc.ServicerContext], wire.RerankResponse]
StreamStep = Fail | Callable[[Iterator[wire.RerankStreamRequest]], Iterator[wire.RerankStreamResponse]] | None


class Hang:
    """Holds an attempt until it is cancelled."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()

    def __call__(self, request: wire.RerankRequest, context: grpc.ServicerContext) -> wire.RerankResponse:
        context.add_callback(self.cancelled.set)
        assert self.cancelled.wait(timeout=30)
        return wire.RerankResponse()


@dataclass(frozen=True)
class Seen:
    """One attempt as it arrived."""

    request: wire.RerankRequest
    metadata: dict[str, str | bytes]
    time_remaining_s: float
    """How long the caller would wait; a day or more stands for "for ever"."""


def logit_of(query: str, document: str) -> float:
    """Return a logit that depends on nothing but the pair, and is a float32."""
    digest = hashlib.blake2b(f"{len(query)}:{query}{document}".encode(), digest_size=4).digest()
    return LOGITS[struct.unpack("<I", digest)[0] % len(LOGITS)]


def unscripted_answer(
    request: wire.RerankRequest, model: str = "scoring-server", fingerprint: str = ""
) -> wire.RerankResponse:
    """Answer as the contract says; documents that hold UNSCORABLE fail."""
    scorable = [index for index, text in enumerate(request.documents) if UNSCORABLE not in text]
    logits = {index: logit_of(request.query, request.documents[index]) for index in scorable}
    best_first = sorted(scorable, key=lambda index: -logits[index])
    response = wire.RerankResponse(model=model, fingerprint=fingerprint)
    for index in best_first[: request.top_n or None]:
        response.results.add(
            index=index,
            relevance_score=logits[index] if request.raw_scores else _sigmoid(logits[index]),
            truncated=len(request.documents[index]) > 100,
            tokens=len(request.documents[index]),
        )
    for index in set(range(len(request.documents))) - set(scorable):
        response.failures.add(index=index, reason="NaN")
    response.usage.computed_pairs = len(scorable)
    response.usage.computed_tokens = sum(len(text) for text in request.documents)
    response.usage.cached_pairs = 1
    response.timings.compute.FromMilliseconds(len(request.documents))
    return response


@dataclass(eq=False)
class ScoringServer(rerank_pb2_grpc.RerankServiceServicer):
    """A context manager around a server on a free port of this machine.

    `script` and `stream_script` say what the next attempts meet; beyond their end all are
    answered. `seen` holds each attempt in the order of arrival.
    """

    name: str = "gpu-0"
    model: str = "scoring-server"
    address: str = "127.0.0.1:0"
    credentials: grpc.ServerCredentials | None = None
    options: tuple[tuple[str, int], ...] = ()
    script: list[Step] = field(default_factory=list)
    stream_script: list[StreamStep] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list, repr=False)
    streams_opened: int = 0
    streams_ended: int = 0
    port: int = 0
    reported_health: health.HealthServicer = field(default_factory=health.HealthServicer)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._server = grpc.server(
            futures.ThreadPoolExecutor(64), options=[("grpc.so_reuseport", 0), *self.options]
        )
        rerank_pb2_grpc.add_RerankServiceServicer_to_server(self, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self.reported_health, self._server)

    @property
    def target(self) -> str:
        # Not "localhost": that has a second address, on which nobody listens, and gRPC tells
        # of the last one that failed.
        return f"127.0.0.1:{self.port}"

    def report(self, status: str) -> None:
        """Change what the health check says about the service."""
        self.reported_health.set(
            "rerank.v1.RerankService", health_pb2.HealthCheckResponse.ServingStatus.Value(status)
        )

    def __enter__(self) -> Self:
        if self.credentials:
            self.port = self._server.add_secure_port(self.address, self.credentials)
        else:
            self.port = self._server.add_insecure_port(self.address)
        self.report("SERVING")
        self._server.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.stop(None).wait()

    def Rerank(  # noqa: N802
        self, request: wire.RerankRequest, context: grpc.ServicerContext
    ) -> wire.RerankResponse:
        with self._lock:
            self.seen.append(Seen(request, dict(context.invocation_metadata()), _remaining_s(context)))
            step = self.script.pop(0) if self.script else None
        if isinstance(step, Fail):
            step.abort(context, self.name)
        response = step(request, context) if callable(step) else unscripted_answer(request, self.model)
        context.send_initial_metadata((("x-served-by", self.name),))
        return response

    def RerankStream(  # noqa: N802
        self, request_iterator: Iterator[wire.RerankStreamRequest], context: grpc.ServicerContext
    ) -> Iterator[wire.RerankStreamResponse]:
        with self._lock:
            self.streams_opened += 1
            step = self.stream_script.pop(0) if self.stream_script else None
        if not isinstance(step, Fail):
            context.send_initial_metadata((("x-served-by", self.name),))
        try:
            if isinstance(step, Fail):
                step.abort(context, self.name)
            elif step is not None:
                yield from step(request_iterator)
            else:
                yield from self.answer_all(request_iterator)
        finally:
            self.streams_ended += 1

    def answer_all(self, requests: Iterator[wire.RerankStreamRequest]) -> Iterator[wire.RerankStreamResponse]:
        for item in requests:
            self.seen.append(Seen(item.request, {}, 0))
            yield wire.RerankStreamResponse(id=item.id, response=unscripted_answer(item.request, self.model))

    def GetModel(  # noqa: N802
        self, request: wire.GetModelRequest, context: grpc.ServicerContext
    ) -> wire.GetModelResponse:
        with self._lock:
            step = self.script.pop(0) if self.script else None
        if isinstance(step, Fail):
            step.abort(context, self.name)
        return wire.GetModelResponse(
            model=self.model,
            revision="abc",
            architecture="Hash",
            max_tokens=512,
            execution="python",
            accepts_instruction=True,
            limits=wire.Limits(
                max_documents=1000,
                max_request_bytes=2**24,
                max_query_bytes=2**16,
                max_windows_per_document=64,
            ),
            score_range=wire.ScoreRange(minimum=0, maximum=1),
            server=self.name,
            server_version="1",
            fingerprint="f00d",
        )


def _remaining_s(context: grpc.ServicerContext) -> float:
    remaining = context.time_remaining()
    return math.inf if remaining is None else remaining


def _sigmoid(logit: float) -> float:
    if logit >= 0:
        return 1.0 / (1.0 + math.exp(-logit))
    return math.exp(logit) / (1.0 + math.exp(logit))
