"""The units of the engine's work: a document in flight, and the pairs it is made of."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from server.engine.pair_cache import PairScore
from server.models.base import EncodedDocument, EncodedPair

__all__ = ["DocumentFlight", "Failure", "Outcome", "QueuedPair"]


@dataclass(frozen=True, slots=True)
class Failure:
    """A pair that the model could not score, and why."""

    reason: str


Outcome: TypeAlias = float | Failure
"""What became of one pair: its logit, or a failure."""


@dataclass(slots=True, eq=False)
class QueuedPair:
    """One window of a document, as the scheduler and the worker see it."""

    encoded: EncodedPair
    flight: "DocumentFlight"
    window: int
    tokens: int
    """What the pair costs."""
    started: bool = False


@dataclass(slots=True, eq=False)
class DocumentFlight:
    """One distinct (query, document) that is being computed, for everyone who asked for it."""

    key: bytes
    encoded: EncodedDocument
    charge: Callable[[int], None]
    """Tells who asked first what was computed, whether or not they still wait."""
    waiting_requests: set[int] = field(default_factory=set)
    pairs: list[QueuedPair] = field(init=False)
    tokens: int = field(init=False)
    """Tokens over all windows."""
    _outcomes: dict[int, Outcome] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pairs = [
            QueuedPair(pair, self, window, pair.tokens) for window, pair in enumerate(self.encoded.pairs)
        ]
        self.tokens = sum(pair.tokens for pair in self.pairs)

    def settle(self, window: int, outcome: Outcome) -> PairScore | Failure | None:
        """Take one window's outcome; returns the document's once all windows are in.

        The best window decides; the first of equals. One failed window fails the
        document: the best of the rest might not be the best of all.
        """
        self._outcomes[window] = outcome
        if len(self._outcomes) < len(self.pairs):
            return None
        best_window, best_logit = 0, float("-inf")
        for position in range(len(self.pairs)):
            logit = self._outcomes[position]
            if isinstance(logit, Failure):
                return logit
            if logit > best_logit:
                best_window, best_logit = position, logit
        spans = self.encoded.spans
        return PairScore(
            best_logit, self.tokens, self.encoded.truncated, spans[best_window] if spans else None
        )
