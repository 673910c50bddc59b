"""One protocol for everything that is compared.

All contenders are started first, then take turns on the same requests, round by round,
so that a machine that slows down slows everybody down. Each is judged by its best round;
the spread of its rounds is reported beside it. Scores are compared with the reference's,
because being fast at something else is not the question.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self, TypeAlias

from benchmarks.workload import Request

__all__ = [
    "Contender",
    "Outcome",
    "Race",
    "RaceRules",
    "Rows",
    "Score",
    "Timed",
    "Unavailable",
    "Watcher",
    "largest_difference",
    "race",
]

Rows: TypeAlias = list[list[float]]
"""Logits: one row per request, in the order of its documents."""


class Unavailable(Exception):
    """A contender can't take part; the message says why. Its figures will be absent."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run over the whole load."""

    elapsed_s: float
    rows: Rows


class Contender(Protocol):
    """Something that scores requests. Entering it makes it ready; leaving it ends all its processes."""

    @property
    def name(self) -> str:
        """Its key in the results."""
        ...

    @property
    def what(self) -> str:
        """What it is, for people."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def score(self, requests: Sequence[Request]) -> Outcome:
        """Score every pair and say how long it took."""
        ...


Score: TypeAlias = Callable[[Sequence[Request]], Outcome]


@dataclass(slots=True)
class Timed:
    """The rounds of one contender."""

    name: str
    what: str
    rounds_s: list[float] = field(default_factory=list)
    rows: Rows = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """One more round."""
        self.rounds_s.append(outcome.elapsed_s)
        self.rows = outcome.rows

    @property
    def best_s(self) -> float:
        """Its fastest round."""
        return min(self.rounds_s)

    @property
    def spread(self) -> float:
        """How much longer the slowest round took, as a share of the fastest."""
        return max(self.rounds_s) / self.best_s - 1


@dataclass(frozen=True, slots=True)
class Race:
    """What came of it."""

    requests: Sequence[Request]
    timed: Mapping[str, Timed]
    """By name, for those that took part."""
    absent: Mapping[str, str]
    """By name, why the others did not."""


@dataclass(frozen=True, slots=True)
class RaceRules:
    """What a race consists of, beside its contenders."""

    warm_up: Sequence[Request]
    plan: Callable[[Score], Sequence[Request]]
    """Gets the first contender's `score` and returns the load, sized to its speed."""
    rounds: int
    each_round: Callable[[], None] = lambda: None
    """What else has to be measured under the same conditions."""
    afterwards: Callable[[Mapping[str, Score]], None] = lambda scores: None
    """Gets everybody's `score` while they are still there."""


class Watcher(Protocol):
    """Hears how a race goes."""

    def doing(self, what: str) -> None:
        """This begins now."""
        ...

    def ran(self, timed: Timed) -> None:
        """A contender finished a round."""
        ...


def race(contenders: Sequence[Contender], rules: RaceRules, watcher: Watcher) -> Race:
    """Let all contenders run the same load in turns; whoever fails is out, the others go on."""
    absent: dict[str, str] = {}
    timed = {contender.name: Timed(contender.name, contender.what) for contender in contenders}

    def leaves(contender: Contender, error: Exception) -> None:
        reason = str(error) if isinstance(error, Unavailable) else f"{type(error).__name__}: {error}"
        absent[contender.name] = reason
        watcher.doing(f"{contender.name} is out: {reason}")

    with ExitStack() as stack:
        ready: list[Contender] = []
        for contender in contenders:
            watcher.doing(f"starting {contender.name}: {contender.what}")
            try:
                stack.enter_context(contender)
                contender.score(rules.warm_up)
                ready.append(contender)
            except Exception as error:
                leaves(contender, error)
        watcher.doing("sizing the load")
        requests = rules.plan(ready[0].score) if ready else []
        # Half a round before the first is not timed: whoever compiles code for the sizes that occur
        # is mostly done with it then.
        for number in range(rules.rounds + 1):
            name = f"round {number} of {rules.rounds}" if number else "half a round to warm up"
            load = requests if number else requests[: -(-len(requests) // 2)]
            if number:
                rules.each_round()
            # Whoever runs first finds the machine coolest: the start moves on each round.
            turn = number % max(1, len(ready))
            for contender in ready[turn:] + ready[:turn]:
                watcher.doing(f"{name}: {contender.name}")
                try:
                    outcome = contender.score(load)
                except Exception as error:
                    leaves(contender, error)
                    continue
                if number:
                    timed[contender.name].add(outcome)
                    watcher.ran(timed[contender.name])
            ready = [contender for contender in ready if contender.name not in absent]
        rules.afterwards({contender.name: contender.score for contender in ready})
    return Race(requests, {name: of for name, of in timed.items() if name not in absent}, absent)


def largest_difference(rows: Rows, reference: Rows) -> float:
    """The largest absolute difference of two sets of scores; infinite when their shapes differ."""
    if [len(row) for row in rows] != [len(row) for row in reference]:
        return math.inf
    differences = [
        abs(a - b)
        for row, other in zip(rows, reference, strict=True)
        for a, b in zip(row, other, strict=True)
    ]
    # max() would let a NaN pass.
    return math.inf if any(map(math.isnan, differences)) else max(differences, default=0.0)
