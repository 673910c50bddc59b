"""What a call returns: frozen values that carry the caller's own objects."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, overload

from rerank._type_variables import T

__all__ = ["FailedDocument", "RankedDocument", "Ranking", "Span", "Timings", "Usage"]


SHOWN_IN_REPR = 3


@dataclass(frozen=True, slots=True)
class Span:
    """A half-open range of a document's text, in characters: `text[span.start:span.end]`."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class RankedDocument(Generic[T]):
    """One document's place in a ranking.

    `document` is the very object that was passed in, and `index` its position there.
    `score` lies in [0, 1], or is the model's logit with raw_scores. `truncated` says
    that the model did not read all of the text, `tokens` how many tokens it read (query
    and special tokens included), and `span` which part won with truncation "chunk".
    """

    index: int
    score: float
    document: T
    truncated: bool = False
    tokens: int = 0
    span: Span | None = None


@dataclass(frozen=True, slots=True)
class FailedDocument(Generic[T]):
    """A document that the model could not score; it is missing from the ranking."""

    index: int
    reason: str
    document: T


@dataclass(frozen=True, slots=True)
class Usage:
    """What a call cost: pairs are (query, document) pairs, and cached ones cost no tokens."""

    computed_tokens: int = 0
    computed_pairs: int = 0
    cached_pairs: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time went, on the servers' clocks, in seconds.

    When a call was split, each figure is that of the slowest part.
    """

    queue_s: float = 0.0
    tokenise_s: float = 0.0
    compute_s: float = 0.0
    total_s: float = 0.0


class Ranking(Sequence[RankedDocument[T]], Generic[T]):
    """An immutable sequence of ranked documents, best first, and what is known about the call.

    Example:
        ranking = client.rerank("what do pandas eat?", articles, text=lambda a: a.body)
        best = ranking[0].document
        good = [ranked.document for ranked in ranking if ranked.score > 0.5]
        print(ranking.usage.computed_tokens, ranking.request_id)
    """

    __slots__ = ("_failures", "_model", "_ranked", "_request_id", "_servers", "_timings", "_usage")

    def __init__(
        self,
        ranked: Sequence[RankedDocument[T]] = (),
        *,
        model: str = "",
        usage: Usage | None = None,
        timings: Timings | None = None,
        failures: Sequence[FailedDocument[T]] = (),
        request_id: str = "",
        servers: Sequence[str] = (),
    ) -> None:
        self._ranked = tuple(ranked)
        self._model = model
        self._usage = usage or Usage()
        self._timings = timings or Timings()
        self._failures = tuple(failures)
        self._request_id = request_id
        self._servers = tuple(servers)

    @property
    def documents(self) -> tuple[T, ...]:
        """The caller's own objects, best first."""
        return tuple(ranked.document for ranked in self._ranked)

    @property
    def model(self) -> str:
        """The id of the model that scored; empty when there was nothing to score."""
        return self._model

    @property
    def usage(self) -> Usage:
        """What the call cost, summed over its parts."""
        return self._usage

    @property
    def timings(self) -> Timings:
        """Where the time went."""
        return self._timings

    @property
    def failures(self) -> tuple[FailedDocument[T], ...]:
        """The documents that could not be scored, in the order of the request."""
        return self._failures

    @property
    def request_id(self) -> str:
        """The id under which the servers logged the call."""
        return self._request_id

    @property
    def servers(self) -> tuple[str, ...]:
        """The names of the servers that answered, each once."""
        return self._servers

    @overload
    def __getitem__(self, index: int) -> RankedDocument[T]: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[RankedDocument[T], ...]: ...
    def __getitem__(self, index: int | slice) -> RankedDocument[T] | tuple[RankedDocument[T], ...]:
        return self._ranked[index]

    def __len__(self) -> int:
        return len(self._ranked)

    def __iter__(self) -> Iterator[RankedDocument[T]]:
        return iter(self._ranked)

    def _key(self) -> tuple[Any, ...]:
        return (
            self._ranked,
            self._model,
            self._usage,
            self._timings,
            self._failures,
            self._request_id,
            self._servers,
        )

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Ranking) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        # Short on purpose: a thousand documents in a notebook cell help nobody.
        shown = [f"#{ranked.index} {ranked.score:.4f}" for ranked in self._ranked[:SHOWN_IN_REPR]]
        if len(self._ranked) > SHOWN_IN_REPR:
            shown.append("…")
        failed = f", {len(self._failures)} failed" if self._failures else ""
        return f"<Ranking of {len(self._ranked)}{failed} [{', '.join(shown)}] by {self._model or 'no model'}>"
