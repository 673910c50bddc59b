"""Everything that this package raises when a call fails.

RerankError                   code, reason, message, field, request_id, retry_after_s, servers
├── InvalidRequestError       change the request; `field` says where       (also ValueError)
│   └── TooLargeError         one part of the request exceeds a limit of the server
├── AuthenticationError       pass a valid api_key
├── PermissionDeniedError     the api_key is valid, but may not do this
├── ModelNotServedError       another model was asked for than is served
├── OverloadedError           come back after `retry_after_s`
├── DeadlineExceededError     timeout_s passed before the answer came       (also TimeoutError)
├── UnavailableError          no server could be reached, or none is ready  (also ConnectionError)
├── DeviceLostError           devices died over this request: don't send it again as it is
├── ScoringFailedError        the model failed on these documents; report it
├── ProtocolError             the other side does not speak rerank.v1 as agreed
└── ClientClosedError         the client was closed before or during the call (also RuntimeError)

A code that is in none of these (INTERNAL from a proxy, say) raises RerankError itself.
"""

from typing import Any

import grpc

__all__ = [
    "AuthenticationError",
    "ClientClosedError",
    "DeadlineExceededError",
    "DeviceLostError",
    "InvalidRequestError",
    "ModelNotServedError",
    "OverloadedError",
    "PermissionDeniedError",
    "ProtocolError",
    "RerankError",
    "ScoringFailedError",
    "TooLargeError",
    "UnavailableError",
]


class RerankError(Exception):
    """A call failed; the subclass says what the caller can do about it.

    `code` is the gRPC status and `reason` a finer constant, both for programs;
    `message` is for people. `field` names the part of the request at fault, such as
    "query" or "documents[3]", and is empty when there is none. `request_id` finds the
    call in the server's log. `retry_after_s` is how long the server asks to be left
    alone, or None. `servers` are the names of the servers that took part, where known.

    Example:
        try:
            ranking = client.rerank(query, documents)
        except OverloadedError as error:
            time.sleep(error.retry_after_s or 1.0)
    """

    default_code = grpc.StatusCode.UNKNOWN
    default_reason = "UNKNOWN"

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode | None = None,
        reason: str = "",
        field: str = "",
        request_id: str = "",
        retry_after_s: float | None = None,
        servers: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.reason = reason or (self.code.name if code else self.default_reason)
        self.field = field
        self.request_id = request_id
        self.retry_after_s = retry_after_s
        self.servers = servers

    def __str__(self) -> str:
        labels = [self.reason]
        if self.request_id:
            labels.append(f"request {self.request_id}")
        if self.servers:
            labels.append(f"by {', '.join(self.servers)}")
        return f"{self.message} [{', '.join(labels)}]"

    # Exceptions rebuild themselves from their positional arguments, which would lose the
    # keywords on the way back from a process pool.
    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, _attributes(self))


class InvalidRequestError(RerankError, ValueError):
    """The request can't be answered as it is; `field` says which part to change."""

    default_code = grpc.StatusCode.INVALID_ARGUMENT
    default_reason = "INVALID_REQUEST"


class TooLargeError(InvalidRequestError):
    """One part of the request exceeds a limit of the server, its model or the proxy before it.

    The client splits long lists of documents by itself, so this is about one part that
    can't be split: the query, or a single document.
    """

    default_reason = "TOO_LARGE"


class AuthenticationError(RerankError):
    """The call carried no API key, or one that the server does not know."""

    default_code = grpc.StatusCode.UNAUTHENTICATED
    default_reason = "UNAUTHENTICATED"


class PermissionDeniedError(RerankError):
    """The API key is known but may not do this."""

    default_code = grpc.StatusCode.PERMISSION_DENIED
    default_reason = "PERMISSION_DENIED"


class ModelNotServedError(RerankError):
    """The request names a model that is not served, or different models answered its parts."""

    default_code = grpc.StatusCode.NOT_FOUND
    default_reason = "MODEL_NOT_SERVED"


class OverloadedError(RerankError):
    """The server has more work than it can do in time; wait `retry_after_s` and try again."""

    default_code = grpc.StatusCode.RESOURCE_EXHAUSTED
    default_reason = "OVERLOADED"


class DeadlineExceededError(RerankError, TimeoutError):
    """The answer did not come within timeout_s, all attempts included."""

    default_code = grpc.StatusCode.DEADLINE_EXCEEDED
    default_reason = "DEADLINE_EXCEEDED"


class UnavailableError(RerankError, ConnectionError):
    """No server could be reached, or none that was is able to answer."""

    default_code = grpc.StatusCode.UNAVAILABLE
    default_reason = "UNAVAILABLE"


class DeviceLostError(RerankError):
    """A device died while it scored this request, and the next server asked gave no answer either.

    The request may be the cause, and would take down one server after the other: it is sent
    to no third one, and should not be sent again before it is known what is unusual in it. It
    is no UnavailableError, so that code which repeats those leaves it alone. With
    max_attempts=1, or no time left, one server was asked and no second.
    """

    default_code = grpc.StatusCode.UNAVAILABLE
    default_reason = "DEVICE_LOST"


class ScoringFailedError(RerankError):
    """The model failed although the request is well formed: a bug or bad weights."""

    default_code = grpc.StatusCode.INTERNAL
    default_reason = "SCORING_FAILED"


class ProtocolError(RerankError):
    """Whatever answered does not speak rerank.v1, or broke its contract."""

    default_code = grpc.StatusCode.UNIMPLEMENTED
    default_reason = "PROTOCOL"


class ClientClosedError(RerankError, RuntimeError):
    """The client was closed before this call, or while it was under way."""

    default_code = grpc.StatusCode.CANCELLED
    default_reason = "CLIENT_CLOSED"


def _attributes(error: RerankError) -> dict[str, Any]:
    return {
        "code": error.code,
        "reason": error.reason,
        "field": error.field,
        "request_id": error.request_id,
        "retry_after_s": error.retry_after_s,
        "servers": error.servers,
    }


def copy_with(error: RerankError, *, message: str, **changes: Any) -> RerankError:
    """Return the same kind of error with another message and some attributes changed."""
    return _rebuild(type(error), message, _attributes(error) | changes)


def _rebuild(kind: type[RerankError], message: str, attributes: dict[str, Any]) -> RerankError:
    return kind(message, **attributes)
