"""The one thread that owns a device."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from server.engine.budget import TokenBudget
from server.engine.pairs import Failure, Outcome, QueuedPair
from server.engine.scheduler import Batch
from server.engine.survival import finish_batch, require_device, score_batch
from server.engine.work_queue import WorkQueue
from server.models.base import DeviceLost, Model, PendingLogits

__all__ = ["DeviceWorker", "FinishedBatch"]

# Two batches on an overlapping device: one computes while the other is assembled and copied.
OVERLAPPED_BATCHES = 2


@dataclass(frozen=True, slots=True)
class FinishedBatch:
    """A batch that left the device, or requests that expired on the way to it."""

    pairs: Sequence[QueuedPair]
    outcomes: Sequence[Outcome]
    tokens: int
    started_s: float
    finished_s: float
    busy_s: float
    """Device time of this batch alone, on the monotonic clock."""
    token_budget: int
    ran_out_of_memory: bool
    expired: Sequence[int]
    dropped_tokens: int
    """Waiting tokens of the expired requests."""


@dataclass(slots=True)
class _Submitted:
    batch: Batch[QueuedPair]
    pending: PendingLogits | None
    """None when submitting failed already: the batch is scored piecemeal instead."""
    started_s: float


class DeviceWorker:
    """Takes batches from the queue, scores them, and hands them to `deliver`.

    `deliver` and `on_lost` are called on this thread. After `on_lost` no batch
    follows: the device is gone, or a bug stopped the thread.
    """

    def __init__(
        self,
        model: Model,
        queue: WorkQueue,
        budget: TokenBudget,
        *,
        deliver: Callable[[FinishedBatch], None],
        on_lost: Callable[[BaseException], None],
    ) -> None:
        self._model = model
        self._queue = queue
        self._budget = budget
        self._deliver = deliver
        self._on_lost = on_lost
        self._depth = OVERLAPPED_BATCHES if model.info.overlaps else 1
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)
        self._submitted: deque[_Submitted] = deque()
        self._last_finished_s = 0.0
        self._ran_out_of_memory = False

    def start(self) -> None:
        """Begin to take batches."""
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Close the queue and wait for the batch on the device; False when it did not end in time."""
        self._queue.close()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def token_budget(self) -> int:
        """Tokens of a batch at present."""
        return self._budget.tokens

    @property
    def running_tokens(self) -> int:
        """Tokens on the device now."""
        return sum(submitted.batch.tokens for submitted in list(self._submitted))

    @property
    def pairs_on_device(self) -> list[QueuedPair]:
        """Of all batches that are there now, or were when the device was lost."""
        return [pair for submitted in list(self._submitted) for pair in submitted.batch.pairs]

    def busy_for_s(self, now_s: float) -> float:
        """How long the oldest batch has been on the device; 0 when it is idle."""
        try:
            return now_s - max(self._submitted[0].started_s, self._last_finished_s)
        except IndexError:
            return 0.0

    def _run(self) -> None:
        try:
            while self._fill() or self._submitted:
                self._finish(self._submitted[0])
        except BaseException as error:  # a dead worker must never look alive
            self._on_lost(error)

    def _fill(self) -> bool:
        """Submit batches until the device has enough to do; False once the queue is closed."""
        while len(self._submitted) < self._depth:
            batch = self._queue.take(self._budget.tokens, block=not self._submitted)
            if batch is None:
                return not self._queue.closed
            if not batch.pairs:
                self._deliver(self._empty(batch))
                continue
            self._submitted.append(_Submitted(batch, None, time.monotonic()))
            self._submitted[-1].pending = self._submit(batch)
        return True

    def _submit(self, batch: Batch[QueuedPair]) -> PendingLogits | None:
        try:
            return self._model.submit([pair.encoded for pair in batch.pairs])
        except DeviceLost:
            raise
        except Exception:  # scored again in `_finish`, which finds out what is wrong
            return None

    def _finish(self, submitted: _Submitted) -> None:
        batch = submitted.batch
        self._ran_out_of_memory = False
        if submitted.pending is None:
            outcomes = score_batch(self._model, batch.pairs, self._shrink)
        else:
            outcomes = finish_batch(self._model, batch.pairs, submitted.pending, self._shrink)
        if all(isinstance(outcome, Failure) for outcome in outcomes):
            require_device(self._model)
        if not self._ran_out_of_memory:
            self._budget.succeed()
        finished_s = time.monotonic()
        busy_s = finished_s - max(submitted.started_s, self._last_finished_s)
        self._last_finished_s = finished_s
        self._submitted.popleft()
        self._deliver(
            FinishedBatch(
                pairs=batch.pairs,
                outcomes=outcomes,
                tokens=batch.tokens,
                started_s=submitted.started_s,
                finished_s=finished_s,
                busy_s=busy_s,
                token_budget=self._budget.tokens,
                ran_out_of_memory=self._ran_out_of_memory,
                expired=batch.expired,
                dropped_tokens=batch.dropped_tokens,
            )
        )

    def _shrink(self, batch_tokens: int) -> None:
        self._ran_out_of_memory = True
        self._budget.shrink(batch_tokens)

    def _empty(self, batch: Batch[QueuedPair]) -> FinishedBatch:
        now_s = time.monotonic()
        return FinishedBatch(
            pairs=[],
            outcomes=[],
            tokens=0,
            started_s=now_s,
            finished_s=now_s,
            busy_s=0.0,
            token_budget=self._budget.tokens,
            ran_out_of_memory=False,
            expired=batch.expired,
            dropped_tokens=batch.dropped_tokens,
        )
