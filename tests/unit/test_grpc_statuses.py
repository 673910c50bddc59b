"""What a gRPC client is told about trying again."""

import pytest

from server.errors import DeviceDied, NotReady, Overloaded, RerankError
from server.transport.grpc_errors import MIN_PUSHBACK_MS, SUSPECTS_SPREAD_MS, Metadata, rpc_status


def pushback_ms(error: RerankError, *invocation: tuple[str, str | bytes]) -> int | None:
    """The delay before the next attempt that the status asks for; gRPC stops at -1."""
    trailers: Metadata = rpc_status(error, (), "id", invocation).trailing_metadata
    told = dict(trailers).get("grpc-retry-pushback-ms")
    return None if told is None else int(told)


def test_requests_of_a_lost_device_come_back_at_different_times() -> None:
    """gRPC may ask one more server, but not at the moment when all others of the batch do."""
    delays = {pushback_ms(DeviceDied("lost")) for _ in range(50)}
    assert len(delays) > 10
    assert all(delay is not None and MIN_PUSHBACK_MS <= delay <= SUSPECTS_SPREAD_MS for delay in delays)


@pytest.mark.parametrize("header", [("grpc-previous-rpc-attempts", "1"), ("rerank-attempt", "0")])
def test_grpc_asks_no_third_server(header: tuple[str, str]) -> None:
    """At its second attempt, and for clients that count attempts themselves, gRPC is told to stop."""
    assert pushback_ms(DeviceDied("lost"), header) == -1


def test_other_unavailability_is_retried_as_the_client_likes() -> None:
    """A server that is not ready says nothing about the pace."""
    assert pushback_ms(NotReady("starting"), ("grpc-previous-rpc-attempts", "1")) is None


def test_no_pushback_is_zero() -> None:
    """Clients of grpcio 1.85 would wait for their deadline."""
    assert pushback_ms(Overloaded("full", retry_after_s=0.0001)) == MIN_PUSHBACK_MS
