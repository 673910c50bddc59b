"""What the ends of a stream and its book-keeping in `_stream.py` tell each other."""

from dataclasses import dataclass
from typing import Any

from rerank._errors import RerankError
from rerank.v1 import rerank_pb2 as wire

__all__ = ["GOODBYE_S", "Answered", "Asked", "Broke", "Event", "SourceEnded", "Surplus"]

# How long a finished stream may take to say goodbye before it is cut.
GOODBYE_S = 1.0

# Answers to nobody's question that a stream may carry before it is given up; without a bound a
# server could fill the memory of a caller who takes his time between two outcomes.
MOST_UNASKED_ANSWERS = 16


@dataclass(frozen=True, slots=True)
class Asked:
    """The caller's iterable gave another query."""

    query: Any


@dataclass(frozen=True, slots=True)
class SourceEnded:
    """The caller's iterable has no more queries, or failed."""

    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """The stream with this generation carried an answer."""

    generation: int
    response: wire.RerankStreamResponse
    servers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Broke:
    """The stream with this generation ended; gracefully, if there is no error."""

    generation: int
    error: RerankError


Event = Asked | SourceEnded | Answered | Broke


class Surplus:
    """Tells when one stream has carried too many answers to nobody's question.

    One thread may count the questions while another counts the answers.
    """

    def __init__(self) -> None:
        self._asked = 0
        self._answered = 0

    def ask(self, questions: int = 1) -> None:
        """Count questions, before they are sent."""
        self._asked += questions

    def answer(self) -> bool:
        """Count an answer; return whether the stream is to be given up."""
        self._answered += 1
        return self._answered - self._asked > MOST_UNASKED_ANSWERS
