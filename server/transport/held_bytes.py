"""How much memory requests take that are arriving or not parsed yet, of all callers together."""

from collections.abc import Iterator
from contextlib import contextmanager

from server.errors import Overloaded
from server.transport.offload import SMALL_BYTES

__all__ = ["HeldBytes"]

FULL_RETRY_AFTER_S = 1.0


class HeldBytes:
    """Counts what is held, and refuses more than there is room for.

    The first `SMALL_BYTES` of each request are free: whoever fills the room with large
    requests that arrive slowly keeps out large ones only.
    """

    def __init__(self, room_bytes: int) -> None:
        self._room_bytes = room_bytes
        self._held_bytes = 0

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
        if more > 0 and self._held_bytes + more > self._room_bytes:
            raise Overloaded(
                f"{self._held_bytes:,} bytes of other requests are arriving or wait to be read, and there "
                f"is room for {self._room_bytes:,} (--receiving-mib); come back, or send less at once",
                retry_after_s=FULL_RETRY_AFTER_S,
            )
        self._held_bytes += more


def _counted(size: int) -> int:
    return max(0, size - SMALL_BYTES)
