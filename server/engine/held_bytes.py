"""How much memory the requests of all callers together may take: pure policy but for its waiting."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from server.errors import Overloaded

__all__ = ["FREE_BYTES", "HeldBytes"]

FREE_BYTES = 64 * 1024
FULL_RETRY_AFTER_S = 1.0


class HeldBytes:
    """Counts what is held, and refuses more than there is room for.

    The first `FREE_BYTES` of each request are free: whoever fills the room with large
    requests keeps out large ones only. A request that is larger than the room is let in alone.

    Args:
        room_bytes: of all requests together.
        what: they do, for the message: "wait to be read".
        option: that makes more room.
    """

    def __init__(self, room_bytes: int, *, what: str, option: str) -> None:
        self._room_bytes = room_bytes
        self._what = what
        self._option = option
        self._held_bytes = 0
        self._freed = asyncio.Event()

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Count a request of this many bytes while the context is open; raises like `resize`."""
        self.resize(0, size)
        try:
            yield
        finally:
            self.resize(size, 0)

    def resize(self, before: int, after: int) -> None:
        """A request that held `before` bytes holds `after` from now on.

        Raises:
            Overloaded: all together would be more than the room; it still holds `before`.
        """
        more = _counted(after) - _counted(before)
        if not self._fits(more, _counted(before)):
            raise Overloaded(
                f"{self._held_bytes:,} bytes of requests {self._what}, and there is room for "
                f"{self._room_bytes:,} ({self._option}); come back, or send less at once",
                retry_after_s=FULL_RETRY_AFTER_S,
            )
        self._held_bytes += more
        if more < 0:
            self._freed.set()

    async def wait_for_room(self, size: int) -> None:
        """Return when a new request of this size would be taken; nothing is held for it yet."""
        while not self._fits(_counted(size), 0):
            self._freed.clear()
            await self._freed.wait()

    def _fits(self, more: int, own: int) -> bool:
        alone = self._held_bytes == own
        return more <= 0 or alone or self._held_bytes + more <= self._room_bytes


def _counted(size: int) -> int:
    return max(0, size - FREE_BYTES)
