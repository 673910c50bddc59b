"""`make fuzz`: bad input on the wire and through the API, and what large requests cost."""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import grpc
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as hypothesis_seed
from rerank.v1 import rerank_pb2, rerank_pb2_grpc
from rich.console import Console

from tests.fuzz.api import METADATA, REQUESTS, check_failure, check_response
from tests.fuzz.cost_campaign import CHANCE_S, measure_costs
from tests.fuzz.wire import Campaign, attack_server
from tests.support.server_process import ServerProcess

__all__ = ["main"]

WIRE_CASES = 80_000
API_CASES = 25_000
# So that a failure names a part small enough to repeat.
PART = 5_000
LAST_LINES = 30


def main(arguments: Sequence[str] | None = None) -> int:
    """Send everything; 0 when the server held."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--wire", type=int, default=WIRE_CASES, metavar="CASES")
    parser.add_argument("--api", type=int, default=API_CASES, metavar="CASES")
    parser.add_argument(
        "--costs",
        type=float,
        default=CHANCE_S,
        metavar="SECONDS",
        help="for large requests by chance; 0 sends none",
    )
    parser.add_argument("--seed", type=int, help="repeat a run; random unless given")
    options = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"seed {seed}")
    with (
        tempfile.TemporaryDirectory(prefix="rerank-fuzz-") as folder,
        # A line for each call, and gRPC's own for each attack, would be gigabytes.
        ServerProcess(
            Path(folder),
            *("--max-tokens", "512"),
            environment={
                "RERANK_LOG_REQUESTS": "false",
                "GRPC_VERBOSITY": "NONE",
                # Native code that crashes leaves at least the Python around it.
                "PYTHONFAULTHANDLER": "1",
            },
        ) as server,
    ):
        held = all(
            _report(attack_server(server, min(PART, options.wire - start), seed=seed + start), console)
            for start in range(0, options.wire, PART)
        )
        if held and options.api:
            started_s = time.monotonic()
            try:
                _call_with_everything(server, options.api, seed)
            except BaseException:
                _autopsy(server, console)
                raise
            console.print(f"{options.api:,} requests in {time.monotonic() - started_s:.0f} s: all held")
        held = held and server.stop() == 0
    # Last: whoever only wants to know what is wrong on the wire need not wait for it.
    if held and options.costs:
        held = measure_costs(seed=seed, chance_s=options.costs)
    return 0 if held else 1


def _report(campaign: Campaign, console: Console) -> bool:
    kinds = ", ".join(f"{count} {name}" for name, count in campaign.cases.most_common())
    console.print(
        f"{campaign.cases.total():,} attacks in {campaign.seconds:.0f} s ({kinds}); "
        f"{campaign.witness_answers:,} proper calls answered meanwhile, port opened again "
        f"{campaign.reopened} times so far, memory {campaign.rss_growth_mib:+.0f} MiB"
    )
    if not campaign.server_held:
        console.print(f"the server did not hold: {campaign}", style="red")
    return campaign.server_held


def _call_with_everything(server: ServerProcess, cases: int, seed: int) -> None:
    with grpc.insecure_channel(server.address) as channel:
        stub = rerank_pb2_grpc.RerankServiceStub(channel)

        @hypothesis_seed(seed)
        @settings(
            max_examples=cases,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        @given(request=REQUESTS, metadata=METADATA)
        def call(request: rerank_pb2.RerankRequest, metadata: list[tuple[str, str]]) -> None:
            try:
                response = stub.Rerank(request, timeout=20, metadata=tuple(metadata))
            except grpc.RpcError as failure:
                assert isinstance(failure, grpc.Call)
                check_failure(request, failure)
            else:
                check_response(request, response)

        call()


def _autopsy(server: ServerProcess, console: Console) -> None:
    """Its log goes with the temporary folder, so what it says of its end is shown now."""
    state = "still runs" if server.running else f"ended with code {server.process.returncode}"
    last = "\n".join(server.log.read_text(errors="replace").splitlines()[-LAST_LINES:])
    console.print(f"the server {state}; its last words:\n{last}", style="red", markup=False)


if __name__ == "__main__":
    sys.exit(main())
