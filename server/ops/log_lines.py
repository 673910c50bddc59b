"""What a log line may hold: values of bounded length, and no endless repetition."""

import threading
from dataclasses import dataclass, field

from structlog.typing import EventDict, WrappedLogger

__all__ = ["MAX_VALUE_CHARACTERS", "Repetition", "bound_values"]

MAX_VALUE_CHARACTERS = 1_000
MAX_TRACEBACK_CHARACTERS = 16_000
MAX_ITEMS = 20
TRACEBACKS = {"exception", "stack"}

LINES_PER_WINDOW = 10
WINDOW_S = 1.0
MAX_KINDS = 1_000
"""Different lines whose repetition is counted at once; further ones are counted together."""


def bound_values(logger: WrappedLogger, name: str, event: EventDict) -> EventDict:
    """Shorten whatever is long: a model's name of 10 MB is a line of 1 kB.

    Everything becomes what JSON has (text, numbers, lists), so that no later step can fail.
    """
    return {
        key: _bounded(value, MAX_TRACEBACK_CHARACTERS if key in TRACEBACKS else MAX_VALUE_CHARACTERS)
        for key, value in event.items()
    }


@dataclass(slots=True)
class Repetition:
    """Lets each kind of line through a few times a second and counts the rest; for any thread."""

    _begun_s: float = 0.0
    _seen: dict[str, int] = field(default_factory=dict)
    _left_out: dict[str, int] = field(default_factory=dict)
    # The garbage collector may run a finaliser here that logs, which asks again on the same thread.
    # What this can do is to miscount by a line.
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def admits(self, kind: str, now_s: float) -> bool:
        """Whether one more line of this kind is to be written; `now_s` is on the monotonic clock."""
        with self._lock:
            if now_s - self._begun_s >= WINDOW_S:
                self._begun_s = now_s
                self._seen.clear()
            if kind not in self._seen and len(self._seen) >= MAX_KINDS:
                kind = "others"
            self._seen[kind] = count = self._seen.get(kind, 0) + 1
            if count <= LINES_PER_WINDOW:
                return True
            self._left_out[kind] = self._left_out.get(kind, 0) + 1
            return False

    def take_left_out(self) -> dict[str, int]:
        """How many lines of which kind were left out since the last time this was asked."""
        with self._lock:
            left_out, self._left_out = self._left_out, {}
        return left_out


def _described(value: object) -> str:
    try:
        return repr(value)
    except Exception as error:  # whoever logs a value does not expect what its own code does
        return f"<{type(value).__name__} without a repr: {type(error).__name__}>"


def _bounded(value: object, limit: int) -> object:
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, list | tuple):
        return [_bounded(item, limit // MAX_ITEMS) for item in value[:MAX_ITEMS]]
    text = value if isinstance(value, str) else _described(value)
    if len(text) <= limit:
        return text
    # Both ends: the first says what it is, and a traceback's last line what happened.
    half = limit // 2
    return f"{text[:half]}… ({len(text) - 2 * half:,} characters left out) …{text[-half:]}"
