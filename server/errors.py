"""Everything that can go wrong, in the language of the domain.

RerankError
├── InvalidRequest          the caller must change the request (field, why)
│   └── TooLarge            the caller must split it (what, actual, limit)
├── Unauthenticated         no valid API key
├── PermissionDenied        a valid API key that may not do this
├── ModelNotServed          another model was asked for
├── Overloaded              come back after `retry_after_s`
├── DeadlineExceeded        the caller's time ran out
├── Unavailable             another server can answer
│   ├── Draining            this one is about to stop
│   ├── NotReady            this one is still starting, or its device died
│   └── DeviceDied          its device died of a batch that held this very request
└── ScoringFailed           the model failed; a bug or bad weights

ConfigurationError          start-up only: one clear line, non-zero exit

Each transport maps these to its own status codes in exactly one place.
"""

__all__ = [
    "ConfigurationError",
    "DeadlineExceeded",
    "DeviceDied",
    "Draining",
    "InvalidRequest",
    "ModelNotServed",
    "NotReady",
    "Overloaded",
    "PermissionDenied",
    "RerankError",
    "ScoringFailed",
    "TooLarge",
    "Unauthenticated",
    "Unavailable",
    "shortened",
]


class RerankError(Exception):
    """Base of all errors that a caller of the service can see.

    `reason` is a constant for programs, `message` is for people, `field` names the
    part of the request at fault and is empty when there is none.
    """

    reason = "INTERNAL"

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.field = field


class InvalidRequest(RerankError):
    """The request can't be answered as it is; `field` says which part to change."""

    reason = "INVALID_REQUEST"

    def __init__(self, field: str, why: str) -> None:
        super().__init__(f"{field}: {why}", field=field)


class TooLarge(InvalidRequest):
    """One part of the request exceeds a limit of this server or its model."""

    reason = "TOO_LARGE"

    def __init__(self, field: str, what: str, *, actual: int | None, limit: int, unit: str) -> None:
        """`actual` is None where nobody counted beyond the limit."""
        if actual is None:
            why = f"{what} has too many {unit}; the limit is {limit:,}"
        else:
            why = f"{what} has {actual:,} {unit}; the limit is {limit:,}"
        super().__init__(field, why)
        self.actual = actual
        self.limit = limit


class Unauthenticated(RerankError):
    """The call carries no API key, or one that this server does not know."""

    reason = "UNAUTHENTICATED"


class PermissionDenied(RerankError):
    """The API key is known but may not do this."""

    reason = "PERMISSION_DENIED"


class ModelNotServed(RerankError):
    """The request names a model that this server does not serve."""

    reason = "MODEL_NOT_SERVED"

    def __init__(self, asked: str, served: str) -> None:
        super().__init__(
            f"model: this server serves {served!r}, not {shortened(asked)!r}; leave model empty to accept it",
            field="model",
        )


class Overloaded(RerankError):
    """The queue is full, or the answer would come after the caller's deadline."""

    reason = "OVERLOADED"

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(RerankError):
    """The caller's deadline passed before the answer was ready."""

    reason = "DEADLINE_EXCEEDED"


class Unavailable(RerankError):
    """This server can't answer now; another one can."""

    reason = "UNAVAILABLE"


class Draining(Unavailable):
    """The server is about to stop and takes no new work."""

    reason = "DRAINING"


class NotReady(Unavailable):
    """The server has no working model yet, or its device died."""

    reason = "NOT_READY"


class DeviceDied(Unavailable):
    """The device died while it scored this request, which may be what killed it.

    A caller may ask one more server, and must then stop: the same request could take
    the whole fleet down, one server after the other.
    """

    reason = "DEVICE_LOST"


class ScoringFailed(RerankError):
    """The model failed on this request although the request is well formed."""

    reason = "SCORING_FAILED"


class ConfigurationError(Exception):
    """The server can't start with these options; the message names the one to change."""


def shortened(text: str, most: int = 200) -> str:
    """The text, or its beginning: for what a caller sent and a message or a log repeats."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"
