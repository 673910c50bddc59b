"""The names of servers: resolved again and again, and never by Nginx."""

import asyncio
import threading

import pytest

from server.healthgate.names import LOOKUP_INTERVAL_S, MAX_LOOKUPS, Names, resolve


class Dns:
    """Answers that a test changes."""

    def __init__(self) -> None:
        self.zone: dict[str, list[str]] = {}
        self.hold = threading.Event()
        self.hold.set()

    def lookup(self, host: str, port: int) -> list[str]:
        self.hold.wait(30)
        if host not in self.zone:
            raise OSError("Name or service not known")
        return [f"{ip}:{port}" for ip in self.zone[host]]


@pytest.fixture
def dns() -> Dns:
    return Dns()


async def settled(names: Names, listed: list[str], now_s: float) -> dict[str, str]:
    """What is known when all lookups that are due at `now_s` are answered."""
    names.endpoints(listed, now_s)
    await names.wait(10)
    return names.endpoints(listed, now_s)


async def test_a_name_comes_in_when_it_resolves_and_follows_its_addresses(dns: Dns) -> None:
    """Nobody knows it, it has one address, two, another one."""
    names, listed = Names(dns.lookup), ["10.0.0.1:1", "late:2"]
    assert await settled(names, listed, 0.0) == {"10.0.0.1:1": "10.0.0.1"}
    for number, addresses in enumerate((["10.0.0.2"], ["10.0.0.2", "10.0.0.3"], ["10.0.0.4"]), 1):
        dns.zone["late"] = addresses
        found = await settled(names, listed, number * LOOKUP_INTERVAL_S)
        assert found == {"10.0.0.1:1": "10.0.0.1", **{f"{each}:2": "late" for each in addresses}}


async def test_a_name_that_no_longer_resolves_keeps_its_addresses(dns: Dns) -> None:
    """An outage of DNS takes no server out; leaving the list does."""
    names = Names(dns.lookup)
    dns.zone["a"] = ["10.0.0.1"]
    assert await settled(names, ["a:1"], 0.0) == {"10.0.0.1:1": "a"}
    dns.zone.clear()
    assert await settled(names, ["a:1"], LOOKUP_INTERVAL_S) == {"10.0.0.1:1": "a"}
    assert names.endpoints([], LOOKUP_INTERVAL_S) == {}


async def test_a_slow_lookup_delays_nobody(dns: Dns) -> None:
    """The others are known meanwhile, and the slow one as soon as it is answered."""
    dns.zone["slow"] = ["10.0.0.9"]
    dns.hold.clear()
    names, listed = Names(dns.lookup), ["slow:1", "10.0.0.1:1"]
    assert names.endpoints(listed, 0.0) == {"10.0.0.1:1": "10.0.0.1"}
    assert names.endpoints(listed, 60.0) == {"10.0.0.1:1": "10.0.0.1"}
    dns.hold.set()
    await names.wait(10)
    assert list(names.endpoints(listed, 60.0)) == ["10.0.0.9:1", "10.0.0.1:1"]


async def test_slow_lookups_starve_nobody(dns: Dns) -> None:
    """A name that has waited longer goes before those of the list's head that are due again."""
    names, listed = Names(dns.lookup), [f"name-{number}:1" for number in range(100)]
    dns.zone = {f"name-{number}": [f"10.0.0.{number}"] for number in range(100)}
    found: dict[str, str] = {}
    for turn in range(5):
        found = names.endpoints(listed, turn * LOOKUP_INTERVAL_S)
        for _ in range(MAX_LOOKUPS):
            await names.wait(10)
    assert len(found) == 100


async def test_many_silent_names_are_looked_up_a_few_at_a_time(dns: Dns) -> None:
    """A list of names that nobody answers for starts a bounded number of threads."""
    dns.hold.clear()
    before = threading.active_count()
    Names(dns.lookup).endpoints([f"silent-{number}:1" for number in range(500)], 0.0)
    await asyncio.sleep(0)
    assert threading.active_count() - before <= 32
    dns.hold.set()


def test_the_system_resolves_names_to_addresses() -> None:
    """As IP:PORT, which Nginx takes whatever DNS says."""
    assert "127.0.0.1:50051" in resolve("localhost", 50051)
