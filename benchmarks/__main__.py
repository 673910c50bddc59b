"""`python -m benchmarks [--only NAME] [--quick]`: measure, print, and write results/latest.json."""

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.cache import CacheMeter
from benchmarks.fairness import FairnessPlan, measure_fairness
from benchmarks.figures import Measured
from benchmarks.latency import LatencyPlan, measure_latency
from benchmarks.machine import describe_machine
from benchmarks.plot import write_plot
from benchmarks.processes import REPOSITORY, Isolated
from benchmarks.protocol import Unavailable
from benchmarks.readme import update_readme
from benchmarks.report import Report
from benchmarks.results import RESULTS, merge, now, read, write
from benchmarks.throughput import COMPARED, ThroughputPlan, measure_throughput

PARTS = (*COMPARED, "fairness", "cache", "latency")
QUICK_THROUGHPUT = ThroughputPlan(rounds=2, reference_s=3.0, min_pairs=64, ranking_tasks=20)
QUICK_FAIRNESS = FairnessPlan(large_documents=200, idle_requests=12, busy_s=5.0, min_busy_requests=3)
QUICK_LATENCY = LatencyPlan(calls=200, rounds=1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts that were asked for; 1 when nothing could be measured."""
    options = _parser().parse_args(arguments)
    # As an exception, so that every process that was started is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # The children inherit it: bars of loading weights would break the table.
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    parts = [options.only] if options.only else PARTS
    console = Console()
    date = now()
    machine = describe_machine()
    # Quick figures are rough, and must not be taken for the others.
    path = RESULTS / ("quick.json" if options.quick else "latest.json")
    results = read(path) if options.only else None
    measured = Measured()
    with Report(console) as report:
        # Written after every stage, so that an interruption loses one and not all.
        for measured in _stages(parts, options.quick, report):
            if measured.figures:
                results = merge(
                    results,
                    machine=machine,
                    date=date,
                    command=_command(options),
                    figures=measured.figures,
                    ratios=measured.ratios,
                    absent=measured.absent,
                )
                write(path, results)
    for name in ("peak", "fairness", "cache", "latency", "int8_quality"):
        if name in measured.figures:
            report.figures(name, measured.figures[name])
    report.ratios(measured.ratios, measured.absent)
    if results is None or not measured.figures:
        return 1
    console.print(f"written: {path.relative_to(REPOSITORY)}")
    if not options.quick:
        write_plot(results)
        update_readme(results)
    return 0


def _stages(parts: Collection[str], quick: bool, report: Report) -> Iterator[Measured]:
    """Run what was asked for; yields all that is known after each stage."""
    from server.models.embedded import materialise

    model = materialise()
    measured = Measured()
    raced = [part for part in parts if part in COMPARED]
    if raced:
        plan = QUICK_THROUGHPUT if quick else ThroughputPlan()
        measured = measure_throughput(raced, model, plan, report, report.has_load)
        yield measured
    if "fairness" in parts:
        _add_fairness(measured, model, QUICK_FAIRNESS if quick else FairnessPlan(), report)
        yield measured
    if "cache" in parts:
        _add_cache(measured, report)
        yield measured
    if "latency" in parts:
        _add_latency(measured, QUICK_LATENCY if quick else LatencyPlan(), report)
        yield measured


def _add_fairness(measured: Measured, model: Path, plan: FairnessPlan, report: Report) -> None:
    try:
        figure = measure_fairness(model, plan, report.doing)
    except Unavailable as error:
        measured.absent["fairness"] = str(error)
        return
    measured.figures["fairness"] = figure
    fair = figure["fair"]
    measured.ratios["small_request_p99_vs_idle"] = fair["busy_p99_ms"] / fair["idle_p50_ms"]


def _add_cache(measured: Measured, report: Report) -> None:
    report.doing("pair cache")
    try:
        with Isolated(CacheMeter) as meter:
            measured.figures["cache"] = meter.call("measure")
    except Unavailable as error:
        measured.absent["cache"] = str(error)
        return
    measured.ratios["cached_pairs_per_s"] = measured.figures["cache"]["pairs_per_s"]


def _add_latency(measured: Measured, plan: LatencyPlan, report: Report) -> None:
    try:
        figure = measure_latency(plan, report.doing)
    except Unavailable as error:
        measured.absent["latency"] = str(error)
        return
    measured.figures["latency"] = figure
    measured.ratios["cached_http_ms"] = figure["http_direct"]["p50_ms"]
    measured.ratios["cached_http_nginx_ms"] = figure["http_nginx"]["p50_ms"]


def _command(options: argparse.Namespace) -> str:
    command = ["python", "-m", "benchmarks"]
    command += ["--only", options.only] if options.only else []
    command += ["--quick"] if options.quick else []
    return shlex.join(command)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure this service beside its peers on this machine, on the CPU, in one run.",
    )
    parser.add_argument(
        "--only",
        choices=PARTS,
        metavar="NAME",
        help=f"one part, with whatever it is compared to, merged into the results: {', '.join(PARTS)}",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a rough run in two minutes, to see that everything works; writes results/quick.json",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
