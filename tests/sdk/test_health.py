"""Health checks, and waiting for a server to become ready."""

import threading
from concurrent import futures
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from rerank import AuthenticationError, DeadlineExceededError, ServingStatus, UnavailableError
from rerank._health import encode_request, status_of

from tests.sdk.scoring_server import ScoringServer
from tests.sdk.twins import Connect, Twin


def test_the_messages_are_those_of_the_standard() -> None:
    """What is spelled by hand here is what the standard's own package reads and writes."""
    request = health_pb2.HealthCheckRequest(service="rerank.v1.RerankService")
    assert encode_request() == request.SerializeToString()
    for number, status in enumerate(ServingStatus):
        value = health_pb2.HealthCheckResponse.ServingStatus.Value(status.name)
        assert value == number
        assert status_of(health_pb2.HealthCheckResponse(status=value).SerializeToString()) is status
    assert status_of(b"\x08\x63") is ServingStatus.UNKNOWN


@pytest.mark.parametrize("status", ["SERVING", "NOT_SERVING"])
def test_health_is_what_the_server_reports(client: Twin, server: ScoringServer, status: str) -> None:
    """health() returns the server's own word."""
    server.report(status)
    assert client.health() is ServingStatus[status]


def test_a_server_without_the_service_says_so(client: Twin, server: ScoringServer) -> None:
    """A server that doesn't know the service is reported as such, not as an error."""
    server.reported_health._server_status.clear()
    assert client.health() is ServingStatus.SERVICE_UNKNOWN


def test_health_of_nobody_is_an_error(connect: Connect) -> None:
    """A server that isn't there raises."""
    with pytest.raises(UnavailableError):
        connect("127.0.0.1:1").health()


def test_waiting_ends_when_the_server_is_ready(client: Twin, server: ScoringServer) -> None:
    """wait_until_ready returns once the server reports SERVING, and not before."""
    server.report("NOT_SERVING")
    threading.Timer(0.3, server.report, ["SERVING"]).start()
    client.wait_until_ready(timeout_s=20)
    assert client.health() is ServingStatus.SERVING


def test_waiting_starts_before_the_server(connect: Connect) -> None:
    """wait_until_ready finds a server that starts later."""
    with ScoringServer() as first:
        address = f"127.0.0.1:{first.port}"
    client = connect(address)
    late = ScoringServer(address=address)
    timer = threading.Timer(0.5, late.__enter__)
    timer.start()
    client.wait_until_ready(timeout_s=20)
    assert len(client.rerank("query", ["a"])) == 1
    timer.join()
    late.__exit__(None, None, None)


def test_waiting_in_vain_says_what_was_seen_last(client: Twin, server: ScoringServer) -> None:
    """When the time is up, the error tells the server's last word."""
    server.report("NOT_SERVING")
    with pytest.raises(DeadlineExceededError, match="at last: the server says NOT_SERVING"):
        client.wait_until_ready(timeout_s=0.3)


def test_waiting_for_nobody_ends_in_time(connect: Connect) -> None:
    """When there is no server at all, the error tells why."""
    with pytest.raises(DeadlineExceededError, match="nothing listens there"):
        connect("127.0.0.1:1").wait_until_ready(timeout_s=0.3)


def test_waiting_does_not_hide_what_it_cannot_cure(connect: Connect) -> None:
    """An error that no waiting cures ends the wait at once."""

    class Refuse(grpc.ServerInterceptor):
        """Knows nobody."""

        def intercept_service(self, continuation: Any, details: Any) -> Any:
            def refuse(request: bytes, context: grpc.ServicerContext) -> bytes:
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you?")
                raise AssertionError

            return grpc.unary_unary_rpc_method_handler(refuse)

    server = grpc.server(futures.ThreadPoolExecutor(1), interceptors=[Refuse()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with pytest.raises(AuthenticationError, match="who are you"):
        connect(f"127.0.0.1:{port}").wait_until_ready(timeout_s=60)
    server.stop(None).wait()
