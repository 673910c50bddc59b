"""Hosts by name: the gate resolves them, so that Nginx never has to.

An Nginx that meets one name which does not resolve refuses its whole configuration: it does
not reload, and does not start again. What the gate writes are IP addresses.
"""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog

from server.healthgate.addresses import split

__all__ = ["Names", "resolve"]

LOOKUP_INTERVAL_S = 5.0
# A lookup that nobody answers takes half a minute; so many of them don't delay the others.
MAX_LOOKUPS = 32

# An error as a value: nobody may be there any more to retrieve it.
_Outcome = list[str] | OSError | ValueError

_log = structlog.get_logger("rerank.healthgate")


def resolve(host: str, port: int) -> list[str]:
    """All addresses of a host as IP:PORT, sorted.

    Raises:
        OSError: it has none.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    # Nginx takes no address with a scope, which is one that only this machine understands.
    hosts = {(family, str(where[0])) for family, _, _, _, where in found if "%" not in str(where[0])}
    return sorted(f"[{ip}]:{port}" if family == socket.AF_INET6 else f"{ip}:{port}" for family, ip in hosts)


@dataclass(slots=True)
class _Name:
    addresses: list[str] = field(default_factory=list)
    lookup: "asyncio.Future[_Outcome] | None" = None
    next_s: float = 0.0
    complaint: str = ""


class Names:
    """What the servers of a list resolve to now; asks again every few seconds, and waits for nobody."""

    def __init__(self, lookup: Callable[[str, int], list[str]] = resolve) -> None:
        self._lookup = lookup
        self._names: dict[str, _Name] = {}

    def endpoints(self, listed: Sequence[str], now_s: float) -> dict[str, str]:
        """The IP:PORT of everything that is listed, each with the host whose it is.

        A name that does not resolve has none yet; one that no longer does keeps those it had.
        """
        self._names = {
            address: self._names.get(address) or _Name() for address in listed if split(address)[2]
        }
        found: dict[str, str] = {}
        for address in listed:
            name = self._names.get(address)
            if name is not None:
                self._follow(address, name, now_s)
            for endpoint in [address] if name is None else name.addresses:
                found.setdefault(endpoint, split(address)[0])
        return found

    async def wait(self, timeout_s: float) -> None:
        """Return when all lookups that are under way have ended, or the time is over."""
        lookups = [name.lookup for name in self._names.values() if name.lookup is not None]
        if lookups:
            await asyncio.wait(lookups, timeout=timeout_s)

    def _follow(self, address: str, name: _Name, now_s: float) -> None:
        if name.lookup is not None and name.lookup.done():
            self._take(address, name, name.lookup.result())
            name.lookup, name.next_s = None, now_s + LOOKUP_INTERVAL_S
        under_way = sum(other.lookup is not None for other in self._names.values())
        if name.lookup is None and now_s >= name.next_s and under_way < MAX_LOOKUPS:
            host, port, _ = split(address)
            name.lookup = _in_background(lambda: self._lookup(host, port))

    def _take(self, address: str, name: _Name, outcome: _Outcome) -> None:
        if isinstance(outcome, list) and outcome:
            if outcome != name.addresses:
                _log.info("resolved", server=address, addresses=outcome)
            name.addresses, name.complaint = outcome, ""
            return
        complaint = str(outcome or "it has no address")
        if complaint != name.complaint:
            name.complaint = complaint
            event = "no longer resolves; its last addresses stay" if name.addresses else "left out"
            _log.error(event, server=address, reason=f"its name does not resolve: {complaint}")


def _in_background(call: Callable[[], list[str]]) -> "asyncio.Future[_Outcome]":
    """The outcome of a call in a thread of its own, which does not keep the process from ending."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_Outcome] = loop.create_future()

    def run() -> None:
        try:
            outcome: _Outcome = call()
        except (OSError, ValueError) as error:
            outcome = error
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(future.set_result, outcome)

    threading.Thread(target=run, name="lookup", daemon=True).start()
    return future
