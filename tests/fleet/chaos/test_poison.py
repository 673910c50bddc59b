"""One request that loses the device of every server that scores it, beside honest ones."""

import asyncio
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

import grpc
import pytest
from rerank import AsyncRerankClient, DeviceLostError, HedgePolicy, Query, Ranking, RerankClient
from rerank.v1 import rerank_pb2

from deploy.local.certificate import CertificateFiles
from tests.fleet.chaos.fleet import ChaosFleet
from tests.fleet.chaos.load import LoadOptions
from tests.fleet.chaos.servers import FleetServer
from tests.fleet.chaos.workload import make_questions
from tests.support.calls import RETRYING, failure_of, request_of

POISON = "simulate_lost"
MOST_SERVERS_LOST = 2
EXIT_DEVICE_LOST = 70
TIMEOUT_S = 20.0
# Eight requests.
LONG_LIST = [f"document {number}" for number in range(1000)]
HONEST_LOAD = LoadOptions(calls_per_s=30)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, certificate: CertificateFiles) -> Iterator[ChaosFleet]:
    with ChaosFleet("l7", tmp_path_factory.mktemp("poison"), certificate, http=True) as running:
        yield running


def by_the_sdk(fleet: ChaosFleet) -> None:
    with (
        RerankClient(fleet.nginx.address, tls=fleet.tls, timeout_s=TIMEOUT_S) as client,
        pytest.raises(DeviceLostError, match="this request may be the cause") as caught,
    ):
        client.rerank("query", ["honest", POISON])
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.UNAVAILABLE, "DEVICE_LOST")


def by_the_hedging_sdk(fleet: ChaosFleet) -> None:
    async def ask() -> None:
        hedge = HedgePolicy(delay_s=0.001, budget=1.0)
        client = AsyncRerankClient(fleet.nginx.address, tls=fleet.tls, timeout_s=TIMEOUT_S, hedge=hedge)
        async with client:
            with pytest.raises(DeviceLostError):
                await client.rerank("query", ["honest", POISON])

    asyncio.run(ask())


def by_the_sdk_part_after_part(fleet: ChaosFleet) -> None:
    with (
        RerankClient(fleet.nginx.address, tls=fleet.tls, timeout_s=TIMEOUT_S, max_in_flight=1) as client,
        pytest.raises(DeviceLostError),
    ):
        client.rerank(POISON, LONG_LIST)


def by_a_stream(fleet: ChaosFleet) -> None:
    queries = [Query(name, "query", [name, "other"]) for name in ("a", "b", POISON)]
    with RerankClient(fleet.nginx.address, tls=fleet.tls, timeout_s=TIMEOUT_S) as client:
        outcomes = dict(client.rerank_many(queries))
    assert isinstance(outcomes.pop(POISON), DeviceLostError)
    assert all(isinstance(outcome, Ranking) for outcome in outcomes.values()), outcomes


def by_grpc_alone(fleet: ChaosFleet) -> None:
    with fleet.nginx.channel(RETRYING) as channel:
        failed = failure_of(channel, request_of("honest", POISON), timeout_s=TIMEOUT_S)
    assert failed.code() is grpc.StatusCode.UNAVAILABLE
    trailers = dict(failed.trailing_metadata() or ())
    assert trailers["grpc-retry-pushback-ms"] == "-1"
    told = trailers["rerank-error-bin"]
    assert isinstance(told, bytes)
    assert rerank_pb2.Error.FromString(told).reason == "DEVICE_LOST"


def by_http(fleet: ChaosFleet) -> None:
    body = json.dumps({"query": "query", "documents": ["honest", POISON]}).encode()
    context = ssl.create_default_context(cafile=str(fleet.certificate.root))
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(
            urllib.request.Request(f"https://{fleet.nginx.address}/rerank", data=body, method="POST"),
            timeout=TIMEOUT_S,
            context=context,
        )
    with caught.value as answer:
        assert (answer.code, answer.headers["x-should-retry"]) == (500, "false")
        assert json.load(answer)["error"]["reason"] == "DEVICE_LOST"


def devices_lost(server: FleetServer) -> int:
    """How often it has said so."""
    return server.log.read_text().count("device lost; exiting")


@pytest.mark.parametrize(
    "ask",
    [by_the_sdk, by_the_hedging_sdk, by_the_sdk_part_after_part, by_a_stream, by_grpc_alone, by_http],
)
def test_a_poisonous_request_loses_two_servers_at_most(
    fleet: ChaosFleet, ask: Callable[[ChaosFleet], None]
) -> None:
    """Its caller is told, at most one more server is asked, and everybody else is answered."""
    fleet.forget_the_past()
    with fleet.load(make_questions(100), HONEST_LOAD) as load:
        load.wait_for_calls(30)
        before = {server: devices_lost(server) for server in fleet.servers}
        ask(fleet)
        load.wait_for_calls(60)
        lost = [server for server in fleet.servers if devices_lost(server) > before[server]]
        for server in lost:
            assert server.process.wait(30) == EXIT_DEVICE_LOST
            server.restart()
        load.wait_for_calls(30)
    assert 1 <= len(lost) <= MOST_SERVERS_LOST
    assert not load.tally.failed, load.tally.describe_errors()
    assert not load.tally.wrong


@pytest.mark.parametrize("hedge", [None, HedgePolicy(delay_s=0.001, budget=1.0)], ids=["plain", "hedged"])
def test_a_poisonous_query_of_a_long_list_is_no_unavailable_error(
    fleet: ChaosFleet, hedge: HedgePolicy | None
) -> None:
    """Its parts may be on every device at once; but its caller learns that it may be the cause."""
    fleet.forget_the_past()
    before = {server: devices_lost(server) for server in fleet.servers}
    with (
        RerankClient(fleet.nginx.address, tls=fleet.tls, timeout_s=TIMEOUT_S, hedge=hedge) as client,
        pytest.raises(DeviceLostError, match="this request may be the cause"),
    ):
        client.rerank(POISON, LONG_LIST)
    for server in fleet.servers:
        if devices_lost(server) > before[server]:
            assert server.process.wait(30) == EXIT_DEVICE_LOST
            server.restart()
