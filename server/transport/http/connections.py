"""Connections of one server: how many, and which of them makes room for another."""

import resource
import ssl
from dataclasses import dataclass, field
from typing import Protocol

from server.config import Settings
from server.transport.http.tls import http_tls_context

__all__ = ["Connection", "Connections"]


class Connection(Protocol):
    """One of them, as far as it can be asked to go."""

    @property
    def dispensable(self) -> bool:
        """Whether nothing is lost with it: no request has come, or all of them are answered and read."""

    def drop(self) -> None:
        """Make room for another connection, at once."""


@dataclass(slots=True)
class Connections:
    """What all connections of one server share."""

    limit: int
    head_timeout_s: float
    body_timeout_s: float
    tls: ssl.SSLContext | None
    open: set[Connection] = field(default_factory=set)
    """All of them, those in their TLS handshake included."""
    waiting: dict[Connection, float] = field(default_factory=dict)
    """Those whose peer has something to do, and since when; whoever has waited longest first."""

    @classmethod
    def within(cls, settings: Settings, most: int) -> "Connections":
        """As the options say, and never all descriptors of the process: others need some.

        Raises:
            ConfigurationError: a TLS file can't be read or used.
        """
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return cls(
            limit=min(most, max(1, descriptors * 3 // 4)),
            head_timeout_s=settings.http_head_timeout_s,
            body_timeout_s=settings.http_body_timeout_s,
            tls=http_tls_context(settings),
        )

    def make_room(self, newcomer: Connection, now_s: float) -> bool:
        """Drop others until the limit holds again; False when all of them are at work."""
        while len(self.open) > self.limit:
            others = (one for one in self.waiting if one is not newcomer)
            chosen = next((one for one in others if one.dispensable), None)
            if chosen is None:
                chosen, since_s = next(iter(self.waiting.items()))
                # Requests that come and answers that go have this long before they count as slow.
                if chosen is newcomer or now_s - since_s < self.body_timeout_s:
                    return False
            self.forget(chosen)
            chosen.drop()
        return True

    def forget(self, connection: Connection) -> None:
        """It is gone, or as good as that."""
        self.open.discard(connection)
        self.waiting.pop(connection, None)
