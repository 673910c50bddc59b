"""When to stop waiting for a server to become ready; pure but for the clock it is made with."""

import time

from rerank._errors import (
    AuthenticationError,
    ClientClosedError,
    DeadlineExceededError,
    InvalidRequestError,
    PermissionDeniedError,
    RerankError,
)
from rerank._health import ServingStatus
from rerank._settings import ClientSettings, check_timeout

__all__ = ["Readiness"]

ATTEMPT_S = 5.0
PAUSE_S = 0.1

# Waiting cures none of these.
HOPELESS = (AuthenticationError, ClientClosedError, InvalidRequestError, PermissionDeniedError)


class Readiness:
    """One wait: how long each look at the server may take, and when to give up."""

    def __init__(self, settings: ClientSettings, timeout_s: float | None) -> None:
        self._timeout_s = settings.timeout_s if timeout_s is None else timeout_s
        check_timeout(self._timeout_s)
        self._target = settings.target
        self._ends_at = time.monotonic() + self._timeout_s
        self._last = "no answer"

    def attempt_s(self) -> float:
        """Return how long the next look may take; raise if the time is up."""
        left_s = self._ends_at - time.monotonic()
        if left_s <= 0:
            raise DeadlineExceededError(
                f"{self._target} was not ready within {self._timeout_s:g} s; at last: {self._last}"
            )
        return min(left_s, ATTEMPT_S)

    def failed(self, error: RerankError) -> None:
        """Take a look that failed; raise if waiting won't help."""
        if isinstance(error, HOPELESS):
            raise error
        self._last = error.message

    def is_ready(self, status: ServingStatus) -> bool:
        """Take what the server said."""
        self._last = f"the server says {status.name}"
        return status is ServingStatus.SERVING

    def pause_s(self) -> float:
        """Return how long to wait before the next look."""
        return min(PAUSE_S, max(0.0, self._ends_at - time.monotonic()))
