"""The table in README.md, made from the results between two markers and never typed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import REFERENCE
from benchmarks.goals import GOALS
from benchmarks.latency import WAYS
from benchmarks.report import readable
from benchmarks.results import Results

__all__ = ["BEGIN", "END", "README", "render_results", "update_readme"]

README = Path(__file__).parent / "README.md"
BEGIN = "<!-- results: written by python -m benchmarks -->"
END = "<!-- end of results -->"

RACED = ("predict", "fastapi", "infinity", "engine", "service_direct", "service", "service_http", "int8")


def update_readme(results: Results, path: Path = README) -> None:
    """Replace what lies between the markers."""
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{path.name} has lost its markers {BEGIN!r} and {END!r}")
    path.write_text(f"{before}{BEGIN}\n\n{render_results(results)}\n{END}{after}")


def render_results(results: Results) -> str:
    """Markdown: machine, ratios, speeds, waiting times, and what is missing."""
    parts = [
        _machine(results),
        _ratios(results),
        _speeds(results),
        _fairness(results),
        _latency(results),
        _others(results),
        _absent(results),
    ]
    return "\n".join(part for part in parts if part)


def _machine(results: Results) -> str:
    machine = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"`{results['command']}`, {results['date']}, commit {machine['commit']}\\\n"
        f"{machine['cpu']}, {machine['cores']} cores ({', '.join(machine['vector_units'])}), "
        f"{machine['memory_gib']} GiB, {machine['system']}, Python {machine['python']}\\\n"
        f"{versions}\n"
    )


def _ratios(results: Results) -> str:
    rows = []
    for name, goal in GOALS.items():
        if name in results["ratios"]:
            value = results["ratios"][name]
            met = "yes" if goal.is_met(value) else "no"
            rows.append([f"`{name}`", goal.meaning, readable(value), str(goal), met, _date(results, name)])
    headings = ["ratio", "meaning", "measured", "goal", "reached", "date"]
    return _table(headings, rows, right=(2, 3)) if rows else ""


def _speeds(results: Results) -> str:
    figures, rows = results["figures"], []
    for name in RACED:
        if name in figures:
            figure = figures[name]
            difference = figure.get("largest_difference")
            rows.append(
                [
                    f"`{name}`",
                    figure["what"],
                    f"{figure['pairs_per_s']:.1f}",
                    f"{figure['tokens_per_s']:,.0f}",
                    f"{figure['gflops']:.0f}",
                    f"{figure['spread']:.0%}",
                    "" if difference is None else f"{float(difference):.1e}",
                    _date(results, name),
                ]
            )
    if not rows:
        return ""
    workload, peak = figures["workload"], figures.get("peak")
    text = (
        f"{workload['pairs']} pairs in {workload['requests']} requests, {workload['mean_tokens']:.0f} tokens "
        f"a pair in the mean (5% below {workload['p5_tokens']:.0f}, 5% above {workload['p95_tokens']:.0f}); "
        f"services have {workload['concurrent_clients']} clients at once. Best round; spread is how much "
        f"longer the slowest took; difference is the largest of any logit from `{REFERENCE}`'s."
    )
    if peak:
        text += f" Peak of a float32 linear layer: {peak['gflops']:.0f} GFLOP/s."
    headings = ["", "what", "pairs/s", "tokens/s", "GFLOP/s", "spread", "difference", "date"]
    return f"{text}\n\n{_table(headings, rows, right=(2, 3, 4, 5, 6))}"


def _fairness(results: Results) -> str:
    figure = results["figures"].get("fairness")
    if figure is None:
        return ""
    rows = [
        [
            f"`--scheduling {scheduling}`",
            f"{of['idle_p50_ms']:,.0f}",
            f"{of['idle_p99_ms']:,.0f}",
            f"{of['busy_p50_ms']:,.0f}",
            f"{of['busy_p99_ms']:,.0f}",
            str(of["busy_requests"]),
        ]
        for scheduling, of in ((name, figure[name]) for name in ("fair", "fifo"))
    ]
    headings = ["", "idle p50 ms", "idle p99 ms", "busy p50 ms", "busy p99 ms", "requests"]
    text = f"{figure['what'].capitalize()} ({_date(results, 'fairness')}):"
    return f"{text}\n\n{_table(headings, rows, right=range(1, 6))}"


def _latency(results: Results) -> str:
    figure = results["figures"].get("latency")
    if figure is None:
        return ""
    rows = [
        [f"`{way}`", f"{figure[way]['p50_ms']:.2f}", f"{figure[way]['p99_ms']:.2f}"]
        for way in WAYS
        if way in figure
    ]
    text = f"{figure['what'].capitalize()} ({_date(results, 'latency')}):"
    return f"{text}\n\n{_table(['', 'p50 ms', 'p99 ms'], rows, right=(1, 2))}"


def _others(results: Results) -> str:
    figures, lines = results["figures"], []
    if "cache" in figures:
        cache = figures["cache"]
        lines.append(
            f"- Pair cache: {cache['pairs_per_s']:,.0f} pairs/s through the engine, "
            f"{cache['cache_alone_pairs_per_s']:,.0f} in the cache alone; {cache['what']}."
        )
    if "int8_quality" in figures:
        quality = figures["int8_quality"]
        lines.append(
            f"- Quality over {quality['tasks']} tasks, {quality['what']}: BM25 {quality['bm25_mrr']:.3f}, "
            f"float32 {quality['float32_mrr']:.3f}, int8 {quality['int8_mrr']:.3f}."
        )
    return "\n".join(lines) + "\n" if lines else ""


def _absent(results: Results) -> str:
    lines = [f"- `{name}` is missing: {why.splitlines()[0]}" for name, why in results["absent"].items()]
    return "\n".join(lines) + "\n" if lines else ""


def _date(results: Results, name: str) -> str:
    return str(results["measured"][name]["date"])[:10]


def _table(headings: Sequence[str], rows: Sequence[Sequence[Any]], right: Sequence[int]) -> str:
    rule = ["---:" if column in right else "---" for column in range(len(headings))]
    lines = [f"| {' | '.join(cells)} |" for cells in (headings, rule, *rows)]
    return "\n".join(lines) + "\n"
