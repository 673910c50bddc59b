"""What every call has, whatever its protocol: an id, and an entry in the log when it ends."""

import asyncio
import re
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog

from server.reranker import Ranking

__all__ = ["Call", "CallLog", "accepted_request_id"]

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def accepted_request_id(offered: str | None) -> str:
    """The caller's request id if it is a sane one, else a new one."""
    if offered and _REQUEST_ID.fullmatch(offered):
        return offered
    return uuid.uuid4().hex


@dataclass(slots=True)
class Call:
    """One call in progress. Transports note what the log line should say."""

    request_id: str
    method: str
    status: str = "CANCELLED"
    """Stays so when the handler never gets to say otherwise."""
    notes: dict[str, object] = field(default_factory=dict)

    def note_cost(self, documents: int, rankings: Sequence[Ranking]) -> None:
        """Note what the answer to so many documents cost."""
        self.notes |= {
            "documents": documents,
            "computed_tokens": sum(ranking.usage.computed_tokens for ranking in rankings),
            "cached_pairs": sum(ranking.usage.cached_pairs for ranking in rankings),
            "queue_milliseconds": round(max((r.timings.queue_s for r in rankings), default=0.0) * 1000, 1),
        }


class CallLog:
    """Counts the calls in progress and logs each when it ends."""

    def __init__(self, *, log_each: bool) -> None:
        self._log = structlog.get_logger("rerank.calls")
        self._log_each = log_each
        self.in_progress = 0
        """Calls that have begun and not ended."""
        self.idle = asyncio.Event()
        """Set while no call is in progress."""
        self.idle.set()
        self.draining = asyncio.Event()
        """Set once no new work is taken: a stream that waits for no answer ends."""
        self.expired = asyncio.Event()
        """Set once the drain's time is over: every stream ends."""

    @contextmanager
    def call(self, method: str, offered_request_id: str | None) -> Iterator[Call]:
        """One call, from arrival to end."""
        call = Call(accepted_request_id(offered_request_id), method)
        started_s = time.monotonic()
        self.in_progress += 1
        self.idle.clear()
        with structlog.contextvars.bound_contextvars(request_id=call.request_id):
            try:
                yield call
            finally:
                self.in_progress -= 1
                if self.in_progress == 0:
                    self.idle.set()
                if self._log_each:
                    self._log.info(
                        "call",
                        method=method,
                        status=call.status,
                        milliseconds=round((time.monotonic() - started_s) * 1000, 1),
                        **call.notes,
                    )
