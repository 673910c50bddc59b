"""From gRPC's errors to this package's, in one place for both clients."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from rerank._advice import connection_advice
from rerank._broken import is_broken_connection
from rerank._errors import (
    AuthenticationError,
    ClientClosedError,
    DeadlineExceededError,
    DeviceLostError,
    InvalidRequestError,
    ModelNotServedError,
    OverloadedError,
    PermissionDeniedError,
    ProtocolError,
    RerankError,
    ScoringFailedError,
    TooLargeError,
    UnavailableError,
)
from rerank._plan import seconds
from rerank._retry import RETRYABLE_CODES
from rerank._settings import Call, ClientSettings
from rerank.v1 import rerank_pb2 as wire

__all__ = [
    "CONNECTION_BROKEN",
    "Failure",
    "closed_error",
    "ended_early_error",
    "error_of_failure",
    "error_of_message",
    "is_retryable",
    "served_by",
]

ERROR_TRAILER = "rerank-error-bin"

# The reason of an UnavailableError that gRPC took for final; see `_repeats.py`.
CONNECTION_BROKEN = "CONNECTION_BROKEN"

# Every reason that server/errors.py knows, and what it is called here.
KIND_OF_REASON: dict[str, type[RerankError]] = {
    "INVALID_REQUEST": InvalidRequestError,
    "TOO_LARGE": TooLargeError,
    "UNAUTHENTICATED": AuthenticationError,
    "PERMISSION_DENIED": PermissionDeniedError,
    "MODEL_NOT_SERVED": ModelNotServedError,
    "OVERLOADED": OverloadedError,
    "DEADLINE_EXCEEDED": DeadlineExceededError,
    "UNAVAILABLE": UnavailableError,
    "DRAINING": UnavailableError,
    "NOT_READY": UnavailableError,
    "DEVICE_LOST": DeviceLostError,
    "SCORING_FAILED": ScoringFailedError,
}

# For errors that no Rerank server made: those of gRPC itself, or of a proxy in between.
KIND_OF_CODE: dict[grpc.StatusCode, type[RerankError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.UNAUTHENTICATED: AuthenticationError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.NOT_FOUND: ModelNotServedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: OverloadedError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    # Only ever a server's or a proxy's doing: what the caller cancels never gets here.
    grpc.StatusCode.CANCELLED: UnavailableError,
    grpc.StatusCode.UNIMPLEMENTED: ProtocolError,
}

CODE_OF_NUMBER: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}

# The channel's limit for answers, which no server of ours exceeds.
ANSWER_TOO_LARGE = "CLIENT: Received message larger than max"

# A server's words end in logs, and on a stream may be as long as an answer.
MOST_TEXT_CHARACTERS = 2000

# Nginx answers 413 as HTTP, which gRPC can only call UNKNOWN; a limit inside gRPC is a
# RESOURCE_EXHAUSTED that no waiting will cure.
BODY_TOO_LARGE = re.compile(r"\b(?:status: ?413|413 \(|http2 header with status: 413)")
MESSAGE_TOO_LARGE = re.compile(r"message larger than max|message size|larger than max", re.IGNORECASE)


LOST_ADVICE = (
    "; this request may be the cause, so no further server is asked: find out what is unusual in it "
    "before sending it again"
)


@dataclass(frozen=True, slots=True)
class Failure:
    """What is left of a failed gRPC call, the same for both kinds of channel."""

    code: grpc.StatusCode
    details: str
    initial_metadata: tuple[tuple[str, str | bytes], ...] = ()
    trailing_metadata: tuple[tuple[str, str | bytes], ...] = ()

    @classmethod
    def of(cls, error: Any) -> "Failure":
        """Read a grpc.RpcError that is a call, or a grpc.aio.AioRpcError."""
        return cls(
            error.code(),
            _shortened(error.details() or ""),
            _pairs(error.initial_metadata()),
            _pairs(error.trailing_metadata()),
        )


def error_of_failure(failure: Failure, settings: ClientSettings, call: Call) -> RerankError:
    """Return the error to raise for a failed call."""
    servers = served_by(failure.initial_metadata) or served_by(failure.trailing_metadata)
    for name, value in failure.trailing_metadata:
        if name == ERROR_TRAILER and isinstance(value, bytes):
            try:
                told = wire.Error.FromString(value)
            except DecodeError:
                break
            return error_of_message(told, settings, call, servers=servers)
    if is_broken_connection(failure.code, failure.details):
        return UnavailableError(
            f"the connection to {settings.target} broke before the answer was complete: {failure.details}",
            reason=CONNECTION_BROKEN,
            request_id=call.request_id,
            servers=servers,
        )
    kind = _kind(failure)
    return kind(
        _message(failure, kind, settings, call),
        code=failure.code,
        reason=kind.default_reason if kind is not RerankError else "",
        request_id=call.request_id,
        retry_after_s=_pushback_s(failure),
        servers=servers,
    )


def error_of_message(
    told: wire.Error, settings: ClientSettings, call: Call, *, servers: tuple[str, ...] = ()
) -> RerankError:
    """Return the error to raise for what a server says in rerank.v1.Error."""
    code = CODE_OF_NUMBER.get(told.code, grpc.StatusCode.UNKNOWN)
    kind = KIND_OF_REASON.get(told.reason) or KIND_OF_CODE.get(code, RerankError)
    return kind(
        _shortened(told.message) + (LOST_ADVICE if kind is DeviceLostError else _attempts(code, settings)),
        code=code,
        reason=_shortened(told.reason),
        field=_shortened(told.field),
        request_id=call.request_id,
        retry_after_s=seconds(told.retry_after) if told.HasField("retry_after") else None,
        servers=servers,
    )


def closed_error(call: Call) -> ClientClosedError:
    """Return the error of a call on a client that is closed."""
    return ClientClosedError("the client is closed; make another one", request_id=call.request_id)


def ended_early_error(settings: ClientSettings, call: Call) -> UnavailableError:
    """Return the error of a stream that ended well, but before all its answers came."""
    return UnavailableError(
        f"{settings.target} ended the stream before it had answered", request_id=call.request_id
    )


def is_retryable(error: RerankError) -> bool:
    """Whether another server, or the same a little later, may well answer."""
    return error.code in RETRYABLE_CODES and not isinstance(error, TooLargeError | ProtocolError)


def served_by(metadata: Iterable[tuple[str, str | bytes]] | None) -> tuple[str, ...]:
    """Return the names of the servers that a call's metadata tells."""
    return tuple(str(value) for name, value in metadata or () if name == "x-served-by")


def _kind(failure: Failure) -> type[RerankError]:
    if ANSWER_TOO_LARGE in failure.details:
        return ProtocolError
    if BODY_TOO_LARGE.search(failure.details):
        return TooLargeError
    if failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED and MESSAGE_TOO_LARGE.search(failure.details):
        return TooLargeError
    return KIND_OF_CODE.get(failure.code, RerankError)


def _message(failure: Failure, kind: type[RerankError], settings: ClientSettings, call: Call) -> str:
    if kind is DeadlineExceededError:
        return (
            f"{settings.target} did not answer within {call.timeout_s:g} s, all attempts included; "
            "raise timeout_s if this much work may take longer"
        )
    said = f"{settings.target} answered {failure.code.name}: {failure.details or 'no details'}"
    if kind is TooLargeError:
        return f"{said}; lower max_request_bytes below the limit of the server and its proxy"
    if kind is ProtocolError:
        return f"{said}; is this the address of a Rerank server?"
    return said + _attempts(failure.code, settings) + connection_advice(failure.details, settings)


def _attempts(code: grpc.StatusCode, settings: ClientSettings) -> str:
    # "Up to", because gRPC doesn't tell how often it tried: a server's pushback and the
    # throttle can both end it early.
    attempts = settings.retry.max_attempts
    return f" (after up to {attempts} attempts)" if code in RETRYABLE_CODES and attempts > 1 else ""


def _pushback_s(failure: Failure) -> float | None:
    for name, value in failure.trailing_metadata:
        if name == "grpc-retry-pushback-ms" and str(value).isdigit():
            return int(value) / 1000
    return None


def _shortened(text: str) -> str:
    return text if len(text) <= MOST_TEXT_CHARACTERS else text[: MOST_TEXT_CHARACTERS - 1] + "…"


def _pairs(metadata: Any) -> tuple[tuple[str, str | bytes], ...]:
    return tuple((str(name), value) for name, value in metadata or ())
