"""The gRPC server: services, options and the port."""

import grpc
import grpc.aio
from grpc_reflection.v1alpha import reflection
from rerank.v1 import rerank_pb2_grpc

from server.config import MIB, Settings
from server.engine.held_bytes import HeldBytes
from server.transport.api_keys import ApiKeys, configured_keys
from server.transport.grpc_auth import RequireApiKey
from server.transport.grpc_codec import MessageCodec
from server.transport.grpc_service import RerankService
from server.transport.ports import cannot_listen, try_ports
from server.transport.tls import configured_tls, server_credentials

__all__ = ["add_rerank_service", "bind", "build_grpc_server", "enable_reflection", "preflight"]

# gRPC's options are C's int.
INT_MAX = 2**31 - 1
# A connection that has not said its first words by then is closed.
HANDSHAKE_TIMEOUT_S = 20
# A peer that is gone without a word is noticed: asked after so long, and given so long to answer.
KEEPALIVE_S, KEEPALIVE_TIMEOUT_S = 120, 20
# Of one connection; a client with more waits, and nobody needs as many.
MAX_STREAMS = 1000


def build_grpc_server(settings: Settings, keys: ApiKeys | None) -> grpc.aio.Server:
    """A server without services or a port; call from the event loop that will run it."""
    held = HeldBytes(settings.receiving_mib * MIB, what="wait to be read", option="--receiving-mib")
    codec = MessageCodec(settings.max_documents, held, log_refusals=settings.log_requests)
    interceptors: list[grpc.aio.ServerInterceptor] = [codec]
    if keys is not None:
        interceptors.insert(0, RequireApiKey(keys))
    return grpc.aio.server(options=_options(settings), interceptors=interceptors)


def add_rerank_service(server: grpc.aio.Server, service: RerankService) -> None:
    """Serve rerank.v1.RerankService."""
    rerank_pb2_grpc.add_RerankServiceServicer_to_server(service, server)


def enable_reflection(server: grpc.aio.Server, *names: str) -> None:
    """Let grpcurl and others ask what is served."""
    reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), server)


def bind(server: grpc.aio.Server, settings: Settings) -> int:
    """Listen; returns the port, which the system chose if 0 was asked for.

    Raises:
        ConfigurationError: the address is taken or does not exist here, or a TLS file is wrong.
    """
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"{host}:{settings.port}"
    tls = configured_tls(settings)
    try:
        if tls is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, server_credentials(tls))
    except RuntimeError:
        port = 0
    if port == 0:
        raise cannot_listen(
            settings.host, settings.port, "--port", "the address is taken or is not one of this machine"
        )
    return port


def preflight(settings: Settings) -> None:
    """Fail before a model is loaded for nothing; `bind` follows once the model is ready.

    Raises:
        ConfigurationError: a port can't be listened on, or a file of keys or certificates is wrong.
    """
    configured_keys(settings)
    configured_tls(settings)
    try_ports(settings)


def _options(settings: Settings) -> list[tuple[str, int]]:
    options = [
        ("grpc.max_receive_message_length", settings.max_request_bytes),
        # A response that echoes its documents is larger than the request.
        ("grpc.max_send_message_length", min(INT_MAX, 2 * settings.max_request_bytes + 1024 * 1024)),
        # Two servers must never share a port by accident, each taking half of the calls.
        ("grpc.so_reuseport", 0),
        # Nginx closes an idle upstream connection on any stray byte, such as a bandwidth probe.
        ("grpc.http2.bdp_probe", 0),
        # Clients that keep idle connections alive are welcome, not punished with GOAWAY.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_time_ms", KEEPALIVE_S * 1000),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_S * 1000),
        # What bounds the answer to a ping; the line above bounds data that nobody acknowledges.
        ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_S * 1000),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_S * 1000),
        ("grpc.max_concurrent_streams", MAX_STREAMS),
    ]
    if settings.max_connection_age_s > 0:
        options += [
            ("grpc.max_connection_age_ms", round(settings.max_connection_age_s * 1000)),
            ("grpc.max_connection_age_grace_ms", 60_000),
        ]
    return options
