"""Domain errors to gRPC statuses: the one place that maps them.

| error | status | details |
|---|---|---|
| InvalidRequest, TooLarge | INVALID_ARGUMENT | BadRequest |
| Unauthenticated | UNAUTHENTICATED | |
| PermissionDenied | PERMISSION_DENIED | |
| ModelNotServed | NOT_FOUND | |
| Overloaded | RESOURCE_EXHAUSTED | RetryInfo, grpc-retry-pushback-ms |
| DeadlineExceeded | DEADLINE_EXCEEDED | |
| Draining, NotReady | UNAVAILABLE | |
| DeviceDied | UNAVAILABLE | grpc-retry-pushback-ms |
| ScoringFailed, anything else | INTERNAL | |

Every status carries a serialised rerank.v1.Error in `rerank-error-bin`, for
clients that should not need google.rpc.
"""

import random
from collections.abc import Iterable
from typing import TypeAlias

import grpc
import grpc.aio
from google.protobuf import any_pb2, duration_pb2, message
from google.rpc import error_details_pb2, status_pb2
from rerank.v1 import rerank_pb2

from server.errors import (
    DeadlineExceeded,
    DeviceDied,
    InvalidRequest,
    ModelNotServed,
    Overloaded,
    PermissionDenied,
    RerankError,
    ScoringFailed,
    Unauthenticated,
    Unavailable,
)

__all__ = ["Metadata", "RpcStatus", "error_message", "rpc_status", "status_name"]

Metadata: TypeAlias = tuple[tuple[str, str | bytes], ...]

# The first class that matches decides, so subclasses share their parent's line.
_CODES: tuple[tuple[type[RerankError], grpc.StatusCode], ...] = (
    (InvalidRequest, grpc.StatusCode.INVALID_ARGUMENT),
    (Unauthenticated, grpc.StatusCode.UNAUTHENTICATED),
    (PermissionDenied, grpc.StatusCode.PERMISSION_DENIED),
    (ModelNotServed, grpc.StatusCode.NOT_FOUND),
    (Overloaded, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (DeadlineExceeded, grpc.StatusCode.DEADLINE_EXCEEDED),
    (Unavailable, grpc.StatusCode.UNAVAILABLE),
    (ScoringFailed, grpc.StatusCode.INTERNAL),
)
# Clients accept 8 KB of trailers and proxies less: a message may quote the request only in part.
MAX_MESSAGE_CHARACTERS = 400

# With 0 a client of grpcio 1.85 waits for its deadline instead (https://github.com/grpc/grpc/issues/41036).
MIN_PUSHBACK_MS = 10
# Of the requests that were on a device when it died, one may be to blame. They are asked to
# come back at different times, so that it meets the others no more.
SUSPECTS_SPREAD_MS = 1000
NO_RETRY = "-1"


class RpcStatus(grpc.Status):
    """A status with its trailing metadata, as `abort_with_status` takes it."""

    def __init__(self, code: grpc.StatusCode, details: str, trailing_metadata: Metadata) -> None:
        self.code = code
        self.details = details
        self.trailing_metadata = trailing_metadata


def status_name(error: BaseException) -> str:
    """The name of the status that a caller sees."""
    return _code(error).name


def error_message(error: BaseException) -> rerank_pb2.Error:
    """The error as rerank.v1.Error; what went wrong inside the server stays in its log."""
    known = (
        error
        if isinstance(error, RerankError)
        else ScoringFailed("internal error; the server's log has more")
    )
    described = rerank_pb2.Error(
        code=_code(error).value[0],
        reason=known.reason if known is error else RerankError.reason,
        message=_shortened(known.message),
        field=known.field,
    )
    if isinstance(error, Overloaded):
        described.retry_after.CopyFrom(_retry_after(error))
    return described


def rpc_status(
    error: BaseException,
    metadata: Metadata,
    request_id: str,
    invocation: Iterable[tuple[str, str | bytes]] | None = None,
) -> RpcStatus:
    """The error as a status with rich details, and `metadata` among its trailers.

    `invocation` is the metadata that came with the call: it says which attempt this was.
    """
    code = _code(error)
    described = error_message(error)
    details: list[message.Message] = [error_details_pb2.RequestInfo(request_id=request_id)]
    trailing = [*metadata, ("rerank-error-bin", described.SerializeToString())]
    if isinstance(error, InvalidRequest):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=described.message
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, Overloaded):
        details.append(error_details_pb2.RetryInfo(retry_delay=_retry_after(error)))
        pushback_ms = max(MIN_PUSHBACK_MS, round(error.retry_after_s * 1000))
        trailing.append(("grpc-retry-pushback-ms", str(pushback_ms)))
    if isinstance(error, DeviceDied):
        trailing.append(("grpc-retry-pushback-ms", _suspects_pushback(dict(invocation or ()))))
    status = status_pb2.Status(
        code=code.value[0], message=described.message, details=[_packed(detail) for detail in details]
    )
    trailing.append(("grpc-status-details-bin", status.SerializeToString()))
    return RpcStatus(code, described.message, tuple(trailing))


def _code(error: BaseException) -> grpc.StatusCode:
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    return grpc.StatusCode.INTERNAL


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE_CHARACTERS else text[: MAX_MESSAGE_CHARACTERS - 1] + "…"


def _retry_after(error: Overloaded) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromMilliseconds(round(error.retry_after_s * 1000))
    return duration


def _suspects_pushback(invocation: dict[str, str | bytes]) -> str:
    """One more server may be asked, by gRPC itself unless the client counts its attempts."""
    if "grpc-previous-rpc-attempts" in invocation or "rerank-attempt" in invocation:
        return NO_RETRY
    return str(random.randint(MIN_PUSHBACK_MS, SUSPECTS_SPREAD_MS))


def _packed(detail: message.Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed
