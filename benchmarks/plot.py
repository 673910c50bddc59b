"""The results as a picture: bars in plain SVG, since a benchmark should not need a plotting library."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from benchmarks.results import RESULTS, Results

__all__ = ["PLOT", "render_plot", "write_plot"]

PLOT = RESULTS / "latest.svg"

WIDTH = 760
LABEL_WIDTH = 200
VALUE_WIDTH = 90
BAR_HEIGHT = 20
ROW_HEIGHT = 28
TITLE_HEIGHT = 40
MARGIN = 16

OURS, THEIRS = "#0a7d5c", "#9aa5b1"
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#1f2933}"
    ".title{font-weight:600;font-size:14px}"
    ".caption{fill:#7b8794}"
)

SPEEDS = (
    ("predict", "CrossEncoder.predict", THEIRS),
    ("fastapi", "FastAPI + predict", THEIRS),
    ("infinity", "Infinity", THEIRS),
    ("engine", "our engine", OURS),
    ("service", "our service, gRPC + Nginx", OURS),
    ("int8", "our engine, int8", OURS),
)

Bar = tuple[str, float, str]
"""Label, value, colour."""


def write_plot(results: Results, path: Path = PLOT) -> None:
    """Replace the picture."""
    path.write_text(render_plot(results))


def render_plot(results: Results) -> str:
    """One panel for speed and one for fairness, of what was measured."""
    figures = results["figures"]
    panels: list[tuple[str, str, list[Bar]]] = []
    speeds = [
        (label, float(figures[name]["pairs_per_s"]), colour)
        for name, label, colour in SPEEDS
        if name in figures
    ]
    if speeds:
        panels.append(("Pairs per second (more is better)", "{:,.1f}", speeds))
    if "fairness" in figures:
        fair, fifo = figures["fairness"]["fair"], figures["fairness"]["fifo"]
        waits = [
            ("idle server, median", float(fair["idle_p50_ms"]), THEIRS),
            ("busy, least served first, p99", float(fair["busy_p99_ms"]), OURS),
            ("busy, first come first served, p99", float(fifo["busy_p99_ms"]), THEIRS),
        ]
        panels.append(
            ("Milliseconds for 10 documents beside requests of 1,000 (less is better)", "{:,.0f} ms", waits)
        )
    return _svg(panels, _caption(results))


def _caption(results: Results) -> str:
    machine = results["machine"]
    return f"{machine['cpu']}, {machine['cores']} cores, {results['date'][:10]}, commit {machine['commit']}"


def _svg(panels: Sequence[tuple[str, str, list[Bar]]], caption: str) -> str:
    body: list[str] = []
    y = MARGIN
    for title, value_format, bars in panels:
        body.append(f'<text x="{MARGIN}" y="{y + 16}" class="title">{escape(title)}</text>')
        y += TITLE_HEIGHT
        longest = max(value for _, value, _ in bars)
        for label, value, colour in bars:
            length = (WIDTH - LABEL_WIDTH - VALUE_WIDTH - 2 * MARGIN) * value / longest
            left, baseline = MARGIN + LABEL_WIDTH, y + BAR_HEIGHT * 0.72
            body += [
                f'<text x="{left - 8}" y="{baseline:.0f}" text-anchor="end">{escape(label)}</text>',
                f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{BAR_HEIGHT}" fill="{colour}"/>',
                f'<text x="{left + length + 6:.1f}" y="{baseline:.0f}">{value_format.format(value)}</text>',
            ]
            y += ROW_HEIGHT
        y += MARGIN
    body.append(f'<text x="{MARGIN}" y="{y + 8}" class="caption">{escape(caption)}</text>')
    height = y + MARGIN + 8
    box = f'width="{WIDTH}" height="{height}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" {box}>',
            f"<style>{STYLE}</style>",
            f'<rect {box} fill="#ffffff"/>',
            *body,
            "</svg>",
            "",
        ]
    )
