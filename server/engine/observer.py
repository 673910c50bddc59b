"""What the engine tells whoever watches it; `server.ops` turns it into metrics and logs."""

from typing import Protocol

__all__ = ["EngineObserver", "SilentObserver"]


class EngineObserver(Protocol):
    """Called on the event loop's thread; implementations must be quick and must not raise."""

    def batch_done(self, *, pairs: int, tokens: int, seconds: float, token_budget: int) -> None:
        """A batch left the device after `seconds` of its time."""
        ...

    def tokens_wasted(self, tokens: int) -> None:
        """Tokens were computed for requests that nobody waits for any more."""
        ...

    def tokens_dropped(self, tokens: int) -> None:
        """Tokens of expired or cancelled requests were dropped before they cost anything."""
        ...

    def request_refused(self, reason: str) -> None:
        """Admission turned a request away."""
        ...

    def pairs_found(self, *, cached: int, joined: int, missed: int) -> None:
        """A request's pairs: from the cache, from a pair already in flight, or to be computed."""
        ...

    def out_of_memory(self, token_budget: int) -> None:
        """A batch did not fit; this is the budget from now on."""
        ...

    def pair_failed(self, reason: str) -> None:
        """One pair could not be scored, alone or in company."""
        ...


class SilentObserver:
    """Watches nothing."""

    def batch_done(self, *, pairs: int, tokens: int, seconds: float, token_budget: int) -> None:
        """Ignore it."""

    def tokens_wasted(self, tokens: int) -> None:
        """Ignore it."""

    def tokens_dropped(self, tokens: int) -> None:
        """Ignore it."""

    def request_refused(self, reason: str) -> None:
        """Ignore it."""

    def pairs_found(self, *, cached: int, joined: int, missed: int) -> None:
        """Ignore it."""

    def out_of_memory(self, token_budget: int) -> None:
        """Ignore it."""

    def pair_failed(self, reason: str) -> None:
        """Ignore it."""
