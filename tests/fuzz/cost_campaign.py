"""Large requests, the whole catalogue and then chance, while a witness calls: a part of `make fuzz`.

python -m tests.fuzz.cost_campaign --only emoji      a part of the catalogue
python -m tests.fuzz.cost_campaign --repeat 1234     the request of one seed
"""

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tests.fuzz.cost_chance import costly_by_chance
from tests.fuzz.costly import Costly
from tests.fuzz.costs import ATTEMPTS, CATALOGUE, HEADING, PATIENCE_S, Cost, CostMeter

__all__ = ["main", "measure_costs"]

CHANCE_S = 180.0
SHOWN = 5


def measure_costs(*, seed: int, chance_s: float = CHANCE_S, attempts: int = ATTEMPTS) -> bool:
    """Send the catalogue, then requests by chance for so long; prints what broke a bound, and the worst."""
    print(HEADING)
    with tempfile.TemporaryDirectory(prefix="rerank-costs-") as folder, CostMeter(Path(folder)) as meter:
        catalogue = _measure(meter, CATALOGUE, attempts)
        by_chance = _measure(meter, _for(chance_s, seed), attempts)
    for title, costs in (("the catalogue", catalogue), ("chance", by_chance)):
        print(f"{len(costs)} large requests of {title}, {_broken(costs)} broke a bound; the worst:")
        print(HEADING)
        for cost in sorted(costs, key=lambda cost: -cost.excess)[:SHOWN]:
            print(cost)
    return _broken(catalogue) + _broken(by_chance) == 0


def _measure(
    meter: CostMeter,
    requests: Iterable[Costly],
    attempts: int,
    patience_s: float = PATIENCE_S,
    *,
    all_rows: bool = False,
) -> list[Cost]:
    costs = []
    for costly in requests:
        cost = meter.cost_of(costly, attempts=attempts, patience_s=patience_s)
        costs.append(cost)
        if all_rows or cost.excess > 1:
            print(cost, flush=True)
    return costs


def _for(seconds: float, seed: int) -> Iterator[Costly]:
    ends_s = time.monotonic() + seconds
    for number in itertools.count(seed):
        if time.monotonic() > ends_s:
            return
        yield costly_by_chance(number)


def _broken(costs: Sequence[Cost]) -> int:
    return sum(cost.excess > 1 for cost in costs)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print every row of a part of the catalogue, or of one seed; 0 when every bound holds."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.cost_campaign", description=__doc__)
    parser.add_argument("--only", default="", metavar="WORDS", help="names that contain this")
    parser.add_argument("--brief", action="store_true", help="only what the tests send")
    parser.add_argument("--repeat", type=int, metavar="SEED", help="a request that chance found")
    parser.add_argument("--attempts", type=int, default=ATTEMPTS)
    parser.add_argument("--patience", type=float, default=PATIENCE_S, metavar="SECONDS")
    options = parser.parse_args(arguments)
    requests: Iterable[Costly] = (
        costly for costly in CATALOGUE if options.only in costly.name and (costly.brief or not options.brief)
    )
    if options.repeat is not None:
        requests = [costly_by_chance(options.repeat)]
    print(HEADING, flush=True)
    with tempfile.TemporaryDirectory(prefix="rerank-costs-") as folder, CostMeter(Path(folder)) as meter:
        costs = _measure(meter, requests, options.attempts, options.patience, all_rows=True)
    return 1 if _broken(costs) else 0


if __name__ == "__main__":
    sys.exit(main())
