"""What is done to a fleet while it works.

A scenario is a name, a sentence, and a function that breaks something and returns when the
fleet has lived through it. Load, counting and reports are not its business.
"""

import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
from rerank.v1 import rerank_pb2, rerank_pb2_grpc

from tests.fleet.chaos.fleet import ChaosFleet
from tests.fleet.chaos.load import LoadOptions, SteadyLoad
from tests.fleet.chaos.servers import TOKENS_PER_SECOND, FleetServer
from tests.fleet.chaos.workload import MAX_TOKENS
from tests.support.waiting import wait_until

__all__ = ["LONG", "SCENARIOS", "SHORT", "Effort", "Scenario"]


@dataclass(frozen=True, slots=True)
class Effort:
    """How long and how often."""

    rolling_rounds: int
    kills: int
    nginx_restarts: int
    frozen_s: float
    lasting_s: float
    """Of a drain that takes its time."""
    watched_calls: int
    """Calls that a lasting fault must see."""


SHORT = Effort(rolling_rounds=1, kills=3, nginx_restarts=1, frozen_s=2.0, lasting_s=4.0, watched_calls=60)
LONG = Effort(rolling_rounds=10, kills=20, nginx_restarts=5, frozen_s=5.0, lasting_s=8.0, watched_calls=600)

Strike = Callable[[ChaosFleet, SteadyLoad, Effort], None]


@dataclass(frozen=True, slots=True)
class Scenario:
    """One way to break a fleet."""

    name: str
    what: str
    """Completes the sentence "no call fails while ..."."""
    strike: Strike
    servers: int = 4
    load: LoadOptions = field(default_factory=LoadOptions)
    weaker_at_l4: str = ""
    """Why layer 4, which balances connections, can't keep the promise."""


def rolling_restart(fleet: ChaosFleet, load: SteadyLoad, effort: Effort) -> None:
    """SIGTERM to one server after the other, each started again when it has ended."""
    for _ in range(effort.rolling_rounds):
        for server in fleet.servers:
            server.signal(signal.SIGTERM)
            server.process.wait(30)
            server.restart()
            fleet.wait_in_rotation([server])


def kill_at_random(fleet: ChaosFleet, load: SteadyLoad, effort: Effort) -> None:
    """SIGKILL to a random server while calls are under way, and the same server again."""
    chance = random.Random(1)
    for _ in range(effort.kills):
        victim = chance.choice([server for server in fleet.servers if fleet.is_in_rotation(server)])
        wait_until(lambda: load.in_flight >= 2, "calls to be under way")
        victim.kill()
        victim.restart()


def freeze(fleet: ChaosFleet, load: SteadyLoad, effort: Effort) -> None:
    """SIGSTOP for some seconds: its connections stay open, and nothing answers."""
    victim = fleet.servers[0]
    victim.signal(signal.SIGSTOP)
    try:
        frozen_at = time.monotonic()
        fleet.wait_out_of_rotation(victim)
        answered = load.tally.servers[victim.name]
        load.wait_for_calls(50)
        assert load.tally.servers[victim.name] == answered, "a frozen server answered"
        time.sleep(max(0.0, frozen_at + effort.frozen_s - time.monotonic()))
    finally:
        victim.signal(signal.SIGCONT)
    fleet.wait_in_rotation()
    if fleet.layer == "l7":
        wait_for_answers_of(load, victim)


def reload_nginx(fleet: ChaosFleet, load: SteadyLoad, effort: Effort) -> None:
    """SIGHUP to Nginx, as for a new certificate."""
    for _ in range(effort.nginx_restarts):
        fleet.nginx.reload()
        load.wait_for_calls(30)


def restart_nginx(fleet: ChaosFleet, load: SteadyLoad, effort: Effort) -> None:
    """Nginx ends, finishing what it has, and is started again: for a moment nobody listens."""
    for _ in range(effort.nginx_restarts):
        fleet.nginx.restart()
        load.wait_for_calls(60)


def slow_server(fleet: ChaosFleet, load: SteadyLoad, effort: Effort) -> None:
    """One server computes at a tenth of the others' speed."""
    victim = fleet.servers[-1]
    with victim.changed(simulated_tokens_per_second=str(TOKENS_PER_SECOND // 10)):
        load.wait_for_calls(effort.watched_calls)
        if fleet.layer == "l7":
            wait_for_answers_of(load, victim)


def broken_device(fleet: ChaosFleet, load: SteadyLoad, effort: Effort) -> None:
    """From one moment on everything that one server's device computes raises."""
    victim = fleet.servers[-1]
    ask_directly(victim, "simulate_broken")
    wait_until(lambda: not victim.running, f"{victim.name} to give up its device")
    assert victim.process.returncode == 70, victim.log_tail()
    victim.restart()
    load.wait_for_calls(effort.watched_calls)


def out_of_memory(fleet: ChaosFleet, load: SteadyLoad, effort: Effort) -> None:
    """Somebody else takes the memory of one server's device: most batches no longer fit."""
    victim = fleet.servers[-1]
    ask_directly(victim, "simulate_squeezed")
    try:
        load.wait_for_calls(effort.watched_calls)
        if fleet.layer == "l7":
            wait_for_answers_of(load, victim)
    finally:
        victim.restart()


def not_serving(fleet: ChaosFleet, load: SteadyLoad, effort: Effort) -> None:
    """One server's port is open, its health says NOT_SERVING, and soon it refuses every new call.

    A real drain with a real reason to last: a call that takes long.
    """
    victim = fleet.servers[-1]
    with long_call(victim, effort.lasting_s):
        victim.signal(signal.SIGTERM)
        fleet.wait_out_of_rotation(victim)
        victim.process.wait(30)
    victim.restart()


def scale(fleet: ChaosFleet, load: SteadyLoad, effort: Effort) -> None:
    """Two servers become six and two again."""
    fleet.add_servers(4)
    fleet.wait_in_rotation()
    for server in fleet.servers:
        if fleet.layer == "l7":
            wait_for_answers_of(load, server)
    fleet.remove_servers(4)
    load.wait_for_calls(30)


SCENARIOS = (
    Scenario("rolling restart", "every server is restarted, one after the other", rolling_restart),
    Scenario("kill -9", "random servers are killed mid-call", kill_at_random),
    Scenario("frozen", "a server stands still and its callers have time to wait", freeze),
    Scenario("nginx reload", "Nginx reads its configuration again", reload_nginx),
    Scenario("nginx restart", "Nginx ends and is started again", restart_nginx),
    Scenario("slow server", "a server is ten times slower than the others", slow_server),
    Scenario("broken device", "a server's device fails everything from one moment on", broken_device),
    Scenario("out of memory", "the batches of a server don't fit into its memory", out_of_memory),
    Scenario("NOT_SERVING", "a server with an open port says NOT_SERVING and refuses calls", not_serving),
    Scenario("scale 2-6-2", "servers are added and taken away", scale, servers=2),
)


def ask_directly(server: FleetServer, document: str) -> None:
    """Send one document to one server, past Nginx; whether it is answered doesn't matter."""
    with server.channel() as channel:
        stub = rerank_pb2_grpc.RerankServiceStub(channel)
        try:
            stub.Rerank(rerank_pb2.RerankRequest(query="query", documents=[document]), timeout=10)
        except grpc.RpcError:
            return


def wait_for_answers_of(load: SteadyLoad, server: FleetServer) -> None:
    """Return when a server has answered one more call of the load."""
    before = load.tally.servers[server.name]
    wait_until(lambda: load.tally.servers[server.name] > before, f"{server.name} to answer")


@contextmanager
def long_call(server: FleetServer, seconds: float) -> Iterator[None]:
    """A call to one server, past Nginx, that takes about so long and must be answered."""
    document = "word " * (MAX_TOKENS - 16)
    documents = [f"{number} {document}" for number in range(round(seconds * TOKENS_PER_SECOND / MAX_TOKENS))]
    with server.channel() as channel:
        stub = rerank_pb2_grpc.RerankServiceStub(channel)
        call = stub.Rerank.future(rerank_pb2.RerankRequest(query="long", documents=documents), timeout=60)
        yield
        assert len(call.result(timeout=60).results) == len(documents)
