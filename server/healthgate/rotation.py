"""Which servers are in the rotation: pure policy, time is an argument.

- NOT_SERVING takes a server out at once: it said so itself.
- Silence takes it out after `silent_answers` in a row: one lost packet is no outage.
- SERVING takes it back at once, unless it flaps: each further exit within
  `flap_window_s` doubles how long it must stay out.
- Damping is a luxury: while fewer than `min_share` of the servers are in, those that
  say SERVING are in whatever their past.
- When nobody is left, everybody is in: the checks are more likely to be wrong than
  the whole fleet is to be dead, and if it is dead, nothing is lost by trying.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

__all__ = ["Answer", "Rotation", "RotationPolicy"]


class Answer(Enum):
    """What a health check brought."""

    SERVING = "serving"
    NOT_SERVING = "not serving"
    SILENCE = "no answer"


@dataclass(frozen=True, slots=True)
class RotationPolicy:
    """The numbers of the policy."""

    silent_answers: int = 2
    flap_window_s: float = 60.0
    undamped_exits: int = 2
    """Exits within the window that are not held against a server."""
    first_hold_s: float = 2.0
    max_hold_s: float = 60.0
    min_share: float = 0.5
    """Of all servers; with fewer in, nobody who serves is held out."""


@dataclass(slots=True)
class _Server:
    is_in: bool = False
    serves: bool = False
    """What it said last."""
    reason: str = "not asked yet"
    silent: int = 0
    exits_s: deque[float] = field(default_factory=deque)
    held_until_s: float = 0.0


class Rotation:
    """The state of every server."""

    def __init__(self, policy: RotationPolicy | None = None) -> None:
        self._policy = policy or RotationPolicy()
        self._servers: dict[str, _Server] = {}

    def set_servers(self, addresses: Iterable[str]) -> None:
        """These are all servers from now on; new ones come in when they first say SERVING."""
        self._servers = {address: self._servers.get(address, _Server()) for address in addresses}

    def observe(self, address: str, answer: Answer, now_s: float) -> None:
        """Take in what a check brought; an address that is gone is ignored."""
        server = self._servers.get(address)
        if server is None:
            return
        # Of one silence nothing follows, neither for a server that is in nor for one that is held out.
        if answer is not Answer.SILENCE or server.silent + 1 >= self._policy.silent_answers:
            server.serves = answer is Answer.SERVING
        if answer is Answer.SERVING:
            server.silent = 0
            if now_s >= server.held_until_s:
                server.is_in, server.reason = True, ""
            elif not server.is_in:
                server.reason = f"flaps: held out for {server.held_until_s - now_s:.0f} s more"
            return
        server.silent = server.silent + 1 if answer is Answer.SILENCE else 0
        if answer is Answer.NOT_SERVING or server.silent >= self._policy.silent_answers:
            if server.is_in:
                self._leave(server, now_s)
            server.is_in, server.reason = False, answer.value

    def members(self) -> dict[str, str]:
        """Every server, with the reason why it is out, or the empty string when it is in."""
        chosen = self._chosen()
        return {
            address: "" if address in chosen else server.reason for address, server in self._servers.items()
        }

    @property
    def fails_open(self) -> bool:
        """Whether everybody is in because nobody looked alive."""
        return bool(self._servers) and not any(server.serves for server in self._servers.values())

    def _chosen(self) -> set[str]:
        if self.fails_open:
            return set(self._servers)
        chosen = {address for address, server in self._servers.items() if server.is_in}
        if len(chosen) < self._policy.min_share * len(self._servers):
            chosen |= {address for address, server in self._servers.items() if server.serves}
        return chosen

    def _leave(self, server: _Server, now_s: float) -> None:
        policy = self._policy
        while server.exits_s and server.exits_s[0] <= now_s - policy.flap_window_s:
            server.exits_s.popleft()
        server.exits_s.append(now_s)
        damped = len(server.exits_s) - policy.undamped_exits
        if damped > 0:
            hold_s = min(policy.max_hold_s, policy.first_hold_s * 2 ** (damped - 1))
            server.held_until_s = now_s + hold_s
