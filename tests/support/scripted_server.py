"""A real gRPC server of the contract that does what a test tells it to.

It runs in the test's own process, which lets a test see what arrived. Everything
about models, queues and drains is the business of `tests.support.server` instead.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from types import TracebackType
from typing import Self

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from rerank.v1 import rerank_pb2, rerank_pb2_grpc

from deploy.local.certificate import CertificateFiles

__all__ = ["Answer", "ScriptedServer", "echo_length"]

MIB = 1024 * 1024

Answer = Callable[[rerank_pb2.RerankRequest, grpc.ServicerContext], rerank_pb2.RerankResponse]


def echo_length(
    request: rerank_pb2.RerankRequest, context: grpc.ServicerContext
) -> rerank_pb2.RerankResponse:
    """Answer every document in order with its length as the score."""
    return rerank_pb2.RerankResponse(
        results=[
            rerank_pb2.RankedDocument(index=index, relevance_score=len(document))
            for index, document in enumerate(request.documents)
        ]
    )


class ScriptedServer(rerank_pb2_grpc.RerankServiceServicer):
    """A context manager around a `grpc.server` on a free port of 127.0.0.1."""

    def __init__(
        self,
        name: str = "scripted",
        answer: Answer = echo_length,
        *,
        port: int = 0,
        threads: int = 16,
        certificate: CertificateFiles | None = None,
    ) -> None:
        self.name = name
        self.answer = answer
        self.metadata_seen: list[dict[str, str | bytes]] = []
        self.health = health.HealthServicer()
        self.health.set("", health_pb2.HealthCheckResponse.SERVING)
        self._lock = threading.Lock()
        self._server = grpc.server(
            futures.ThreadPoolExecutor(max_workers=threads),
            options=[
                ("grpc.max_receive_message_length", 16 * MIB),
                ("grpc.so_reuseport", 0),
                ("grpc.http2.bdp_probe", 0),
            ],
        )
        rerank_pb2_grpc.add_RerankServiceServicer_to_server(self, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        address = f"127.0.0.1:{port}"
        self.port = (
            self._server.add_secure_port(address, _credentials(certificate))
            if certificate
            else self._server.add_insecure_port(address)
        )
        self.address = f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Close the port and cancel what is in flight."""
        self._server.stop(grace=None).wait()

    def Rerank(  # noqa: N802 - the name is the contract's
        self, request: rerank_pb2.RerankRequest, context: grpc.ServicerContext
    ) -> rerank_pb2.RerankResponse:
        """Answer as the script says."""
        self._remember(context)
        response = self.answer(request, context)
        # Not before the answer: once headers are out, neither Nginx nor gRPC can offer a clean error.
        context.send_initial_metadata((("x-served-by", self.name),))
        return response

    def RerankStream(  # noqa: N802 - the name is the contract's
        self, request_iterator: Iterator[rerank_pb2.RerankStreamRequest], context: grpc.ServicerContext
    ) -> Iterator[rerank_pb2.RerankStreamResponse]:
        """Answer each query as the script says, one after the other."""
        self._remember(context)
        for item in request_iterator:
            yield rerank_pb2.RerankStreamResponse(id=item.id, response=self.answer(item.request, context))

    def GetModel(  # noqa: N802 - the name is the contract's
        self, request: rerank_pb2.GetModelRequest, context: grpc.ServicerContext
    ) -> rerank_pb2.GetModelResponse:
        """Describe what is not there."""
        self._remember(context)
        return rerank_pb2.GetModelResponse(model="scripted", server=self.name)

    def _remember(self, context: grpc.ServicerContext) -> None:
        with self._lock:
            self.metadata_seen.append(dict(context.invocation_metadata()))


def _credentials(certificate: CertificateFiles) -> grpc.ServerCredentials:
    return grpc.ssl_server_credentials([(certificate.key.read_bytes(), certificate.certificate.read_bytes())])
