"""Log lines on their way to a file descriptor, which may take them slowly or never.

A pipe whose reader has stopped blocks whoever writes into it. Here that is one thread that
does nothing else: callers put entries into a bounded queue and go on, and what does not fit
is counted and said once there is room again.
"""

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue

from structlog.typing import EventDict

__all__ = ["LogWriter"]

QUEUED_LINES = 4_000
LINES_PER_WRITE = 200
TICK_S = 1.0


class LogWriter:
    """A thread that renders entries and writes them to a descriptor."""

    def __init__(
        self,
        descriptor: int,
        render: Callable[[EventDict], str],
        *,
        more: Callable[[], Iterable[EventDict]],
        lost: Callable[[int], EventDict],
    ) -> None:
        """Start the thread.

        `more` is asked every second for entries of its own; `lost` words how many lines were
        dropped. Both are called on the thread.
        """
        self._descriptor = descriptor
        self._render = render
        self._more = more
        self._lost = lost
        # Its put neither blocks nor takes a lock that a garbage collector's log line could meet again.
        self._queue: SimpleQueue[EventDict | threading.Event] = SimpleQueue()
        self._not_queued = 0
        self._not_written = 0
        self._said_dropped = 0
        self._asked_more_s = 0.0
        threading.Thread(target=self._run, name="log", daemon=True).start()

    @property
    def dropped(self) -> int:
        """Lines that were not written because the descriptor did not take them."""
        return self._not_queued + self._not_written

    def put(self, entry: EventDict) -> None:
        """Write an entry soon, or count it as dropped; never waits."""
        if self._queue.qsize() >= QUEUED_LINES:
            self._not_queued += 1
        else:
            self._queue.put(entry)

    def flush(self, timeout_s: float) -> bool:
        """Wait until what was put before is written; False when it was not in time."""
        written = threading.Event()
        self._queue.put(written)
        return written.wait(timeout_s)

    def _run(self) -> None:
        while True:
            items = self._next_items()
            entries = [item for item in items if not isinstance(item, threading.Event)]
            if time.monotonic() - self._asked_more_s >= TICK_S:
                self._asked_more_s = time.monotonic()
                entries += self._more()
            if (dropped := self.dropped) > self._said_dropped:
                entries.append(self._lost(dropped - self._said_dropped))
                self._said_dropped = dropped
            if entries:
                self._write("".join(self._rendered(entry) + "\n" for entry in entries), len(items))
            for item in items:
                if isinstance(item, threading.Event):
                    item.set()

    def _next_items(self) -> list[EventDict | threading.Event]:
        items: list[EventDict | threading.Event] = []
        with contextlib.suppress(Empty):
            items.append(self._queue.get(timeout=TICK_S))
            while len(items) < LINES_PER_WRITE:
                items.append(self._queue.get_nowait())
        return items

    def _rendered(self, entry: EventDict) -> str:
        try:
            return self._render(entry)
        except Exception as error:  # one line is lost, and not all that follow
            return self._render({"event": "a log line could not be rendered", "error": type(error).__name__})

    def _write(self, text: str, lines: int) -> None:
        """Write to the descriptor itself: a stream's lock would be held for as long as it blocks."""
        rest = memoryview(text.encode("utf-8", "backslashreplace"))
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:
                # Somebody who shares the descriptor made it non-blocking.
                select.select([], [self._descriptor], [], TICK_S)
            except OSError:
                # The reader is gone, or the disk is full.
                self._not_written += lines
                return
