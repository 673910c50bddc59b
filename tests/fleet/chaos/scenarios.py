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
from grpc_health.v1 import health_pb2
from rerank import HedgePolicy
from rerank.v1 import rerank_pb2, rerank_pb2_grpc

from tests.fleet.chaos.fleet import ChaosFleet
from tests.fleet.chaos.load import LoadOptions, SteadyLoad
from tests.fleet.chaos.servers import TOKENS_PER_SECOND, FleetServer
from tests.support.scripted_server import ScriptedServer
from tests.support.waiting import wait_until

__all__ = ["LONG", "SCENARIOS", "SHORT", "Effort", "Scenario"]


@dataclass(frozen=True, slots=True)
class Effort:
    """How long and how often."""

    rolling_rounds: int
    kills: int
    nginx_restarts: int
    frozen_s: float
    watched_calls: int
    """Calls that a lasting fault must see."""


SHORT = Effort(rolling_rounds=1, kills=3, nginx_restarts=1, frozen_s=3.0, watched_calls=120)
LONG = Effort(rolling_rounds=10, kills=20, nginx_restarts=5, frozen_s=5.0, watched_calls=600)

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
    calm_calls: int = 60
    """Before and after the blow, so that the fleet is seen to have been well, and to be well again."""
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
    # A small budget, since warming up runs full batches at this speed.
    with victim.changed(simulated_tokens_per_second=str(TOKENS_PER_SECOND // 10), token_budget="512"):
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
    """One server's port is open, its health says NOT_SERVING, and it refuses every call."""
    victim = fleet.servers[-1]
    with impostor(fleet, victim) as refusing:
        refusing.health.set("rerank.v1.RerankService", health_pb2.HealthCheckResponse.NOT_SERVING)
        fleet.wait_out_of_rotation(victim)
        load.wait_for_calls(effort.watched_calls)


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
    Scenario(
        "frozen, hedged",
        "a server stands still for longer than its callers may wait",
        freeze,
        load=LoadOptions(timeout_s=2.5, clients=4, hedge=HedgePolicy(delay_s=0.3, budget=0.05)),
        # Hedges must be earned: one by twenty calls of the same client.
        calm_calls=300,
        weaker_at_l4="a hedge takes the same connection, and so goes to the same frozen server",
    ),
    Scenario("nginx reload", "Nginx reads its configuration again", reload_nginx),
    Scenario("nginx restart", "Nginx ends and is started again", restart_nginx),
    Scenario("slow server", "a server is ten times slower than the others", slow_server),
    Scenario("broken device", "a server's device fails everything from one moment on", broken_device),
    Scenario("out of memory", "the batches of a server don't fit into its memory", out_of_memory),
    Scenario(
        "NOT_SERVING",
        "a server with an open port refuses all calls",
        not_serving,
        weaker_at_l4="connections to it stay open, and every retry takes the same one",
    ),
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
def impostor(fleet: ChaosFleet, server: FleetServer) -> Iterator[ScriptedServer]:
    """Another server at this one's address, which refuses every call."""
    server.kill()

    def refuse(request: rerank_pb2.RerankRequest, context: grpc.ServicerContext) -> rerank_pb2.RerankResponse:
        context.abort(grpc.StatusCode.UNAVAILABLE, "not now")

    try:
        with ScriptedServer(
            server.name, refuse, port=server.port, certificate=server.certificate
        ) as scripted:
            yield scripted
    finally:
        server.restart()
