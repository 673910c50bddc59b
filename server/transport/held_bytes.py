"""How much memory requests take that have arrived and are not parsed yet, of all callers together."""

from collections.abc import Iterator
from contextlib import contextmanager

from server.errors import Overloaded
from server.transport.offload import SMALL_BYTES

__all__ = ["HeldBytes"]

FULL_RETRY_AFTER_S = 1.0


class HeldBytes:
    """Counts what is held, and refuses more than there is room for.

    The first `SMALL_BYTES` of each request are free: whoever fills the room with large
    requests keeps out large ones only.
    """

    def __init__(self, room_bytes: int) -> None:
        self._room_bytes = room_bytes
        self._held_bytes = 0

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Count a request of this many bytes while the context is open.

        Raises:
            Overloaded: all together are more than the room.
        """
        counted = max(0, size - SMALL_BYTES)
        if counted and self._held_bytes + counted > self._room_bytes:
            raise Overloaded(
                f"{self._held_bytes:,} bytes of other requests wait to be read, and there is room for "
                f"{self._room_bytes:,} (--receiving-mib); come back, or send less at once",
                retry_after_s=FULL_RETRY_AFTER_S,
            )
        self._held_bytes += counted
        try:
            yield
        finally:
            self._held_bytes -= counted
