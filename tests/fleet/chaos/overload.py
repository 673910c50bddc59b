"""Ten times what a server can do, through Nginx and gRPC."""

import asyncio
import itertools
import time
from dataclasses import dataclass, field
from pathlib import Path

from rerank import AsyncRerankClient, DeadlineExceededError, OverloadedError, RetryPolicy

from deploy.local.certificate import CertificateFiles
from tests.fleet.chaos.fleet import ChaosFleet
from tests.fleet.chaos.processes import resident_kib

__all__ = ["LONG_S", "SHORT_S", "Overload", "overload"]

LONG_S = 60.0
SHORT_S = 5.0
CAPACITY_TOKENS_PER_S = 10_000
TIMES = 10
DEADLINE_S = 1.0
RECOVERY_S = 2.0
DOCUMENTS = 16
DOCUMENT_WORDS = 57
# [CLS], the query's word, [SEP], the document, [SEP].
REQUEST_TOKENS = DOCUMENTS * (DOCUMENT_WORDS + 4)
# The queue fills, the estimate of the speed settles, and at length the allocator has all the memory
# that a storm takes, before anything is measured.
WARM_UP_SHARE = 1 / 2
MIN_WARM_UP_S = 2.0
RECOVERED_CALLS = 10


@dataclass(slots=True)
class Overload:
    """What callers and the server's memory went through."""

    seconds: float
    sent: int = 0
    goodput_tokens: int = 0
    refused: int = 0
    refused_without_pushback: int = 0
    expired: int = 0
    """Accepted, and not answered by the deadline."""
    other_errors: list[str] = field(default_factory=list)
    answered_s: list[float] = field(default_factory=list)
    rss_before_kib: int = 0
    rss_after_kib: int = 0
    failed_after: int = 0
    """Of the calls that came 2 s after the storm, at half of the capacity."""

    @property
    def goodput_share(self) -> float:
        """Tokens of answers in time, over what the device can do."""
        return self.goodput_tokens / self.seconds / CAPACITY_TOKENS_PER_S

    @property
    def rss_growth(self) -> float:
        """Share by which the server's memory grew while it was measured."""
        return self.rss_after_kib / self.rss_before_kib - 1

    def figures(self) -> dict[str, float | str]:
        """For the table and for chaos.json."""
        return {
            "seconds": self.seconds,
            "sent": self.sent,
            "answered": len(self.answered_s),
            "goodput_share_of_capacity": self.goodput_share,
            "slowest_answer_s": max(self.answered_s),
            "deadline_s": DEADLINE_S,
            "refused": self.refused,
            "refused_without_pushback": self.refused_without_pushback,
            "expired": self.expired,
            "other_errors": "; ".join(sorted(set(self.other_errors))[:3]),
            "rss_growth": self.rss_growth,
            "failed_2_s_after": self.failed_after,
        }


def overload(folder: Path, certificate: CertificateFiles, seconds: float) -> Overload:
    """Storm one server behind Nginx for some seconds, and look at it again 2 s later."""
    folder.mkdir(parents=True, exist_ok=True)
    options = {"--simulated-tokens-per-second": str(CAPACITY_TOKENS_PER_S), "--token-budget": "2048"}
    with ChaosFleet("l7", folder, certificate, servers=1, server_options=options) as fleet:
        return asyncio.run(_storm(fleet, seconds))


async def _storm(fleet: ChaosFleet, seconds: float) -> Overload:
    seen = Overload(seconds)
    pid = fleet.servers[0].process.pid
    async with AsyncRerankClient(
        # Refusals are what is looked at, so nothing is tried again.
        fleet.nginx.address,
        tls=fleet.tls,
        timeout_s=DEADLINE_S,
        retry=RetryPolicy(max_attempts=1),
    ) as client:
        numbers = itertools.count()
        # The same storm, unmeasured.
        warm_up_s = max(MIN_WARM_UP_S, seconds * WARM_UP_SHARE)
        await _send(client, numbers, warm_up_s, TIMES, Overload(warm_up_s))
        seen.rss_before_kib = resident_kib(pid)
        await _send(client, numbers, seconds, TIMES, seen)
        seen.rss_after_kib = resident_kib(pid)
        await asyncio.sleep(RECOVERY_S)
        after = Overload(RECOVERED_CALLS * 2 * REQUEST_TOKENS / CAPACITY_TOKENS_PER_S)
        await _send(client, numbers, after.seconds, 0.5, after)
        seen.failed_after = after.sent - len(after.answered_s)
    return seen


async def _send(
    client: AsyncRerankClient, numbers: "itertools.count[int]", seconds: float, times: float, seen: Overload
) -> None:
    """Send `times` the capacity; answers after the end are waited for, but their tokens not counted."""
    interval_s = REQUEST_TOKENS / (times * CAPACITY_TOKENS_PER_S)
    started_s = time.monotonic()
    calls: set[asyncio.Task[None]] = set()
    while (next_s := started_s + seen.sent * interval_s) < started_s + seconds:
        await asyncio.sleep(max(0.0, next_s - time.monotonic()))
        seen.sent += 1
        call = asyncio.create_task(_call(client, next(numbers), started_s + seconds, seen))
        calls.add(call)
        call.add_done_callback(calls.discard)
    await asyncio.gather(*calls)


async def _call(client: AsyncRerankClient, number: int, until_s: float, seen: Overload) -> None:
    # Words that nobody else uses: equal pairs in flight would be computed once.
    rest = "word " * (DOCUMENT_WORDS - 1)
    documents = [f"w{number}x{index} {rest}" for index in range(DOCUMENTS)]
    called_s = time.monotonic()
    try:
        ranking = await client.rerank("a", documents)
    except OverloadedError as error:
        seen.refused += 1
        seen.refused_without_pushback += error.retry_after_s is None
    except DeadlineExceededError:
        seen.expired += 1
    except Exception as error:
        seen.other_errors.append(f"{type(error).__name__}: {error}")
    else:
        seen.answered_s.append(time.monotonic() - called_s)
        if time.monotonic() < until_s:
            seen.goodput_tokens += ranking.usage.computed_tokens
