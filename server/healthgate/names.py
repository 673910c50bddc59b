"""Hosts by name: the gate resolves them, so that Nginx never has to.

An Nginx that meets one name which does not resolve refuses its whole configuration: it does
not reload, and does not start again. What the gate writes are IP addresses.
"""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

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
    has_outcome: bool = False
    """Whether it has resolved, or failed to, since it was listed."""
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
        self._take_outcomes(now_s)
        self._start_lookups(now_s)
        found: dict[str, str] = {}
        for address in listed:
            name = self._names.get(address)
            for endpoint in [address] if name is None else name.addresses:
                found.setdefault(endpoint, split(address)[0])
        return found

    async def wait(self, timeout_s: float) -> None:
        """Return when a lookup that is under way has ended, there is none, or the time is over."""
        if lookups := self._under_way():
            await asyncio.wait(lookups, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)

    async def settle(self, listed: Sequence[str], timeout_s: float) -> None:
        """Return when each name of the list has resolved or failed once, or the time is over."""
        give_up_s = time.monotonic() + timeout_s
        self.endpoints(listed, time.monotonic())
        while not all(name.has_outcome for name in self._names.values()):
            left_s = give_up_s - time.monotonic()
            if left_s <= 0:
                return
            await self.wait(left_s)
            self.endpoints(listed, time.monotonic())

    def _under_way(self) -> "list[asyncio.Future[_Outcome]]":
        lookups = (name.lookup for name in self._names.values())
        return [lookup for lookup in lookups if lookup is not None and not lookup.done()]

    def _take_outcomes(self, now_s: float) -> None:
        for address, name in self._names.items():
            if name.lookup is not None and name.lookup.done():
                self._take(address, name, name.lookup.result())
                name.lookup, name.next_s = None, now_s + LOOKUP_INTERVAL_S

    def _start_lookups(self, now_s: float) -> None:
        free = MAX_LOOKUPS - len(self._under_way())
        due = [address for address, name in self._names.items() if not name.lookup and name.next_s <= now_s]
        # Who has waited longest comes first: where lookups are slow, the last of a long list would starve.
        due.sort(key=lambda address: self._names[address].next_s)
        for address in due[: max(0, free)]:
            self._names[address].lookup = _in_background(partial(self._lookup, *split(address)[:2]))

    def _take(self, address: str, name: _Name, outcome: _Outcome) -> None:
        name.has_outcome = True
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
