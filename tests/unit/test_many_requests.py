"""What the scheduler does for one request takes as long beside thousands as beside a few."""

import statistics
import time
from dataclasses import dataclass

from server.engine.scheduler import Priority, Scheduler

FEW, MANY = 50, 5_000
# A logarithm may grow, caches are cold, machines are busy; work for each open request would be 100 times.
MOST_TIMES = 8.0
CYCLES = 200
ROUNDS = 5
PAIRS = 4


@dataclass(eq=False)
class Pair:
    tokens: int = 100
    started: bool = False


def seconds_of_a_cycle(scheduler: Scheduler[Pair], first: int) -> float:
    """Admit a request, choose a batch, and remove the request; the median over many."""
    seconds = []
    for number in range(first, first + CYCLES):
        pairs = [Pair() for _ in range(PAIRS)]
        started_s = time.perf_counter()
        assert scheduler.queued_tokens >= scheduler.tokens_ahead(Priority.INTERACTIVE, 400)
        scheduler.open(number, priority=Priority.INTERACTIVE, expected_tokens=400)
        scheduler.add(number, pairs)
        scheduler.next_batch(now_s=0.0)
        scheduler.close(number)
        seconds.append(time.perf_counter() - started_s)
    return statistics.median(seconds)


def filled(requests: int) -> Scheduler[Pair]:
    """So many open requests of both classes, each with more pairs than are ever served here."""
    scheduler: Scheduler[Pair] = Scheduler(token_budget=400)
    for number in range(requests):
        scheduler.open(number, priority=Priority(number % 2), deadline_s=1e9 + number, expected_tokens=0)
        scheduler.add(number, [Pair() for _ in range(PAIRS * ROUNDS * CYCLES // requests + PAIRS)])
    return scheduler


def test_admission_choice_and_removal_do_not_depend_on_how_many_are_open() -> None:
    """5,000 open requests against 50: the same time, but for a logarithm."""
    schedulers = {requests: filled(requests) for requests in (FEW, MANY)}
    best = dict.fromkeys(schedulers, float("inf"))
    for turn in range(ROUNDS):
        # In turns, so that a busy moment of the machine meets both.
        for requests, scheduler in schedulers.items():
            best[requests] = min(best[requests], seconds_of_a_cycle(scheduler, MANY + turn * CYCLES))
    assert best[MANY] < MOST_TIMES * best[FEW]
