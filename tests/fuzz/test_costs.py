"""No single request may hold up other callers, take the server's memory, or keep it from stopping."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from tests.compat.http_server import HttpServerProcess
from tests.fuzz.cost_chance import costly_by_chance
from tests.fuzz.costly import Costly
from tests.fuzz.costs import CATALOGUE, HEADING, OPTIONS, CostMeter
from tests.fuzz.fronts import GaveUp, Ports
from tests.fuzz.processors import ProcessorShare, processor_s
from tests.support.waiting import wait_until

PATIENCE_S = 2.0
MOST_UNTIL_DRAIN_S = 1.0
# Handled, and not only read, is a request that has taken so much of the processor.
HANDLED_S = 0.3
GRACE_S = 2
ENDS_WITHIN_S = 15.0
BRIEF = [costly for costly in CATALOGUE if costly.brief]
# Of those that keep a server busy longest, one for each kind of work.
WORST = (
    "one document of 16 MiB, short words",
    "windows of one word, 4,096 documents",
    "the same rank_field 100,000 times, one document",
    "gzip of many empty members",
    "4,096 pairs",
)


@pytest.fixture(scope="module")
def meter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CostMeter]:
    with CostMeter(tmp_path_factory.mktemp("costs")) as meter:
        print(f"\n{HEADING}")
        yield meter


@pytest.mark.parametrize("costly", BRIEF, ids=lambda costly: costly.name)
def test_beside_a_large_request_small_callers_wait_no_longer(meter: CostMeter, costly: Costly) -> None:
    """Nobody waits 250 ms longer, health answers within 250 ms, and memory grows by at most 200 MiB."""
    cost = meter.cost_of(costly, patience_s=PATIENCE_S)
    print(cost)
    assert cost.excess <= 1, f"\n{HEADING}\n{cost}"


@pytest.mark.parametrize("name", WORST)
def test_a_drain_begins_while_a_large_request_is_handled(tmp_path: Path, name: str) -> None:
    """SIGTERM is heard within a second, and the process ends soon after its grace."""
    costly = next(costly for costly in CATALOGUE if costly.name == name)
    request = costly.build()
    options = (*OPTIONS, "--drain-grace", str(GRACE_S))
    with HttpServerProcess(tmp_path, *options) as server:
        pid = server.process.pid
        before_s = processor_s(pid)

        ports = Ports(server.port, server.http_port)
        stopped = threading.Event()

        def send() -> None:
            # Again and again, since it may be answered, or refused, in no time.
            while not stopped.is_set():
                with suppress(GaveUp, OSError, grpc.FutureTimeoutError):
                    request.send(ports, patience_s=ENDS_WITHIN_S)

        caller = threading.Thread(target=send)
        caller.start()
        wait_until(lambda: processor_s(pid) - before_s > HANDLED_S, "the request to be handled")
        stopped.set()
        server.signal(signal.SIGTERM)
        signalled_s, processors = time.monotonic(), ProcessorShare(pid)
        wait_until(lambda: '"draining"' in server.log.read_text(errors="replace"), "the drain to begin")
        assert processors.now() * (time.monotonic() - signalled_s) < MOST_UNTIL_DRAIN_S
        assert server.process.wait(ENDS_WITHIN_S) == 0
        caller.join()


def test_a_seed_repeats_its_request() -> None:
    """What chance found once can be sent again."""
    first, again, other = (costly_by_chance(seed) for seed in (1, 1, 2))
    assert (first.name, first.build()) == (again.name, again.build())
    assert first.name != other.name
