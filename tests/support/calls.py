"""Calls on raw channels, for tests of what lies between a client and a server."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import grpc
from grpc_health.v1 import health_pb2_grpc
from rerank.v1 import rerank_pb2, rerank_pb2_grpc

__all__ = [
    "LARGE_MESSAGES",
    "RETRYING",
    "failure_of",
    "health_stub",
    "metadata_of",
    "request_of",
    "served_by",
    "spread",
]

LARGE_MESSAGES: list[tuple[str, Any]] = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
]
"""Channel options without gRPC's own limits, so that the limits under test answer."""

RETRYING: list[tuple[str, Any]] = [
    (
        "grpc.service_config",
        json.dumps(
            {
                "methodConfig": [
                    {
                        "name": [{}],
                        "retryPolicy": {
                            "maxAttempts": 4,
                            "initialBackoff": "0.05s",
                            "maxBackoff": "0.2s",
                            "backoffMultiplier": 2,
                            "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED"],
                        },
                    }
                ]
            }
        ),
    )
]
"""Channel options with a retry policy like the SDK's."""


def request_of(*documents: str, query: str = "query") -> rerank_pb2.RerankRequest:
    """A request for these documents."""
    return rerank_pb2.RerankRequest(query=query, documents=documents)


def served_by(channel: grpc.Channel, *, timeout_s: float = 20) -> str:
    """Make one call and return the name of the server that answered."""
    call = rerank_pb2_grpc.RerankServiceStub(channel).Rerank.with_call(request_of("a"), timeout=timeout_s)[1]
    return metadata_of(call)["x-served-by"]


def spread(channel: grpc.Channel, calls: int, *, at_once: int = 8) -> list[str]:
    """Make many calls, `at_once` of them at a time, and return who answered each."""
    with ThreadPoolExecutor(at_once) as threads:
        return list(threads.map(lambda _: served_by(channel), range(calls)))


def failure_of(
    channel: grpc.Channel,
    request: rerank_pb2.RerankRequest,
    *,
    timeout_s: float = 20,
    metadata: Sequence[tuple[str, str]] = (),
) -> grpc.Call:
    """Make one call that must fail, and return it for its code, details and metadata."""
    try:
        rerank_pb2_grpc.RerankServiceStub(channel).Rerank(
            request, timeout=timeout_s, metadata=tuple(metadata)
        )
    except grpc.RpcError as error:
        return cast(grpc.Call, error)
    raise AssertionError("the call succeeded")


def health_stub(channel: grpc.Channel) -> Any:
    """A stub of grpc.health.v1, whose published types lack its methods."""
    return health_pb2_grpc.HealthStub(channel)


def metadata_of(call: grpc.Call) -> dict[str, str]:
    """Initial and trailing metadata together; a trailers-only answer has only the latter."""
    both = (*(call.initial_metadata() or ()), *(call.trailing_metadata() or ()))
    return {key: value if isinstance(value, str) else value.decode("latin-1") for key, value in both}
