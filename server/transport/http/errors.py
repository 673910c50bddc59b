"""Domain errors to HTTP: the one place that maps them.

| error | status | type |
|---|---|---|
| InvalidRequest | 400 | invalid_request_error |
| TooLarge | 413 | invalid_request_error |
| Unauthenticated | 401 | authentication_error |
| PermissionDenied | 403 | permission_error |
| ModelNotServed | 404 | not_found_error |
| Overloaded | 429 and Retry-After | rate_limit_error |
| DeadlineExceeded | 504 | timeout_error |
| Draining, NotReady | 503 and Retry-After | service_unavailable_error |
| RequestTimeout | 408 | timeout_error |
| DeviceDied | 500: a balancer takes a 503 to the next server, and the next | internal_server_error |
| ScoringFailed, anything else | 500 | internal_server_error |

Each dialect writes them in a body of its own; `combined_body` is one that the parsers of
Cohere, Jina, Voyage, vLLM and OpenAI all understand.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from server.errors import (
    DeadlineExceeded,
    DeviceDied,
    InvalidRequest,
    ModelNotServed,
    Overloaded,
    PermissionDenied,
    RerankError,
    ScoringFailed,
    TooLarge,
    Unauthenticated,
    Unavailable,
    shortened,
)

__all__ = [
    "CallerGone",
    "HeadTooLarge",
    "HttpError",
    "MethodNotAllowed",
    "NotFound",
    "RequestTimeout",
    "UnsupportedEncoding",
    "combined_body",
    "http_error",
]

UNAVAILABLE_RETRY_AFTER_S = 1.0
# Some messages quote the request, which may be megabytes of a word that no field takes.
MAX_MESSAGE_CHARACTERS = 1000


class CallerGone(Exception):
    """The caller hung up; nobody reads an answer."""


class NotFound(RerankError):
    """There is nothing at this path."""

    reason = "NOT_FOUND"


class MethodNotAllowed(RerankError):
    """The path exists, for another method."""

    reason = "METHOD_NOT_ALLOWED"


class UnsupportedEncoding(RerankError):
    """The body is compressed in a way that this server can't read."""

    reason = "UNSUPPORTED_ENCODING"


class RequestTimeout(RerankError):
    """The rest of the request did not come."""

    reason = "REQUEST_TIMEOUT"


class HeadTooLarge(RerankError):
    """The request's path and headers are longer than any honest ones."""

    reason = "HEAD_TOO_LARGE"


@dataclass(frozen=True, slots=True)
class HttpError:
    """An error as HTTP says it, before a dialect writes its body."""

    status: int
    type: str
    """OpenAI's name of the kind."""
    tei_type: str
    """TEI's name of the kind."""
    reason: str
    """A constant for programs, the same as over gRPC."""
    message: str
    field: str
    """The part of the request at fault; empty when there is none."""
    headers: Mapping[str, str]


# The first class that matches decides, so subclasses come before their parents.
_STATUSES: tuple[tuple[type[RerankError], int, str, str], ...] = (
    (TooLarge, 413, "invalid_request_error", "Validation"),
    (InvalidRequest, 400, "invalid_request_error", "Validation"),
    (Unauthenticated, 401, "authentication_error", "Unauthenticated"),
    (PermissionDenied, 403, "permission_error", "PermissionDenied"),
    (ModelNotServed, 404, "not_found_error", "Validation"),
    (NotFound, 404, "not_found_error", "NotFound"),
    (MethodNotAllowed, 405, "invalid_request_error", "Validation"),
    (RequestTimeout, 408, "timeout_error", "Validation"),
    (HeadTooLarge, 431, "invalid_request_error", "Validation"),
    (UnsupportedEncoding, 415, "invalid_request_error", "Validation"),
    (Overloaded, 429, "rate_limit_error", "Overloaded"),
    (DeviceDied, 500, "internal_server_error", "Backend"),
    (Unavailable, 503, "service_unavailable_error", "Unhealthy"),
    (DeadlineExceeded, 504, "timeout_error", "Overloaded"),
    (ScoringFailed, 500, "internal_server_error", "Backend"),
)


def http_error(error: Exception) -> HttpError:
    """The error as HTTP says it; what went wrong inside the server stays in its log."""
    if not isinstance(error, RerankError):
        return HttpError(
            500,
            "internal_server_error",
            "Backend",
            RerankError.reason,
            "internal error; the server's log has more",
            "",
            {},
        )
    status, kind, tei_type = next(
        (row[1:] for row in _STATUSES if isinstance(error, row[0])), (500, "internal_server_error", "Backend")
    )
    message = shortened(error.message, MAX_MESSAGE_CHARACTERS)
    return HttpError(status, kind, tei_type, error.reason, message, shortened(error.field), _headers(error))


def combined_body(error: HttpError) -> object:
    """Cohere reads `message`, Jina and Voyage `detail`, OpenAI and vLLM `error`."""
    return {
        "message": error.message,
        "detail": error.message,
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.field or None,
            "code": error.status,
            "reason": error.reason,
        },
    }


def _headers(error: RerankError) -> dict[str, str]:
    if isinstance(error, Overloaded):
        return _retry_after(error.retry_after_s)
    if isinstance(error, DeviceDied):
        # What the client libraries of OpenAI's kind ask before they repeat a 500.
        return {"x-should-retry": "false"}
    if isinstance(error, Unavailable):
        return _retry_after(UNAVAILABLE_RETRY_AFTER_S)
    if isinstance(error, Unauthenticated):
        return {"www-authenticate": "Bearer"}
    return {}


def _retry_after(seconds: float) -> dict[str, str]:
    """Whole seconds are all that the standard header can say; some clients read the finer one."""
    return {
        "retry-after": str(max(1, math.ceil(seconds))),
        "retry-after-ms": str(max(1, round(seconds * 1000))),
    }
