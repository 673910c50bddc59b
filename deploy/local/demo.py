"""`make demo`: a fleet with a real cross-encoder, a few real queries through its balancer, and an end.

It shows what the service is for on any machine with a CPU: two servers, Nginx with TLS
in front, and the SDK, which learns one address and one root certificate.
"""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

from rerank import Ranking, RerankClient, RerankError, TLSConfig
from rich.console import Console
from rich.table import Table

from deploy.local.fleet import DEFAULT_MODEL, DEFAULT_RUN_DIR, Fleet, FleetError, FleetOptions
from deploy.local.ports import free_port

__all__ = ["main"]


@dataclass(frozen=True, slots=True)
class Search:
    """What somebody asked, and what a first-stage retrieval may have brought back."""

    query: str
    candidates: tuple[str, ...]


SEARCHES = (
    Search(
        "How many people live in Berlin?",
        (
            "Berlin is well known for its museums, its clubs and its lakes.",
            "New York City had 8.8 million inhabitants at the census of 2020.",
            "Berlin has a population of 3.7 million, which makes it the largest city of Germany.",
            "The river Spree flows through Berlin for about 45 kilometres.",
            "People in Berlin live in twelve boroughs, the newest borders of which date from 2001.",
        ),
    ),
    Search(
        "can dogs eat grapes",
        (
            "Grapes are grown for wine in most of southern Europe.",
            "Dogs were domesticated before any other animal.",
            "Grapes and raisins are toxic to dogs and can cause kidney failure, even in small amounts.",
            "Carrots are a healthy snack that most dogs may eat.",
            "Cats do not taste sweetness.",
        ),
    ),
    Search(
        "python program killed out of memory no traceback",
        (
            "A traceback names the line on which an exception was raised.",
            "Pythons kill their prey by constriction.",
            "Use logging.exception inside an except block to record the stack.",
            "When memory runs out, Linux kills the process with SIGKILL, so that Python has no chance "
            "to print a traceback.",
        ),
    ),
    Search(
        "what makes bread dough rise?",
        (
            "Unleavened bread such as matzo is baked within eighteen minutes of mixing.",
            "The sun rises in the east because the earth turns towards it.",
            "Bread prices rose by a fifth last year as wheat became scarce.",
            "Bread dough rises because yeast eats the sugars in flour and gives off carbon dioxide, "
            "which fills it with bubbles.",
        ),
    ),
)
TOP_N = 3


def main() -> int:
    """Run the demo; 0 when every query was answered."""
    console = Console()
    # As an exception, so that the fleet is torn down.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _materialise(console)
        options = FleetOptions(port=free_port(), run_dir=DEFAULT_RUN_DIR / "demo")
        with Fleet(options, console) as fleet:
            _search(fleet, console)
    except (FleetError, RerankError) as error:
        console.print(f"[bold red]The demo failed:[/] {error}", soft_wrap=True, highlight=False)
        return 1
    except KeyboardInterrupt:
        console.print("stopped")
        return 130
    console.print("All processes are stopped. `make up` keeps such a fleet running.")
    return 0


def _materialise(console: Console) -> None:
    """Have the embedded cross-encoder written as a checkpoint, where it isn't yet."""
    console.print(f"Preparing the embedded cross-encoder {DEFAULT_MODEL}:")
    command = [sys.executable, "-m", "server", "materialise"]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode != 0:
        raise FleetError("the cross-encoder could not be prepared; the reason is above")
    console.print(f"  {result.stdout.strip()}", highlight=False)


def _search(fleet: Fleet, console: Console) -> None:
    tls = TLSConfig(root_certificates=fleet.certificate.root)
    console.print(f'\nRerankClient("{fleet.address}", tls=...) asks Nginx, which asks a server:\n')
    answered: set[str] = set()
    with RerankClient(fleet.address, tls=tls) as client:
        for search in SEARCHES:
            started_s = time.perf_counter()
            ranking = client.rerank(search.query, search.candidates, top_n=TOP_N)
            console.print(_table(search, ranking, time.perf_counter() - started_s), "")
            answered.update(ranking.servers)
    console.print(f"{len(SEARCHES)} queries were answered by {', '.join(sorted(answered))}.")


def _table(search: Search, ranking: Ranking[str], seconds: float) -> Table:
    timings = ranking.timings
    table = Table(
        title=search.query,
        title_style="bold",
        title_justify="left",
        caption=f"best {len(ranking)} of {len(search.candidates)} by {', '.join(ranking.servers)} in "
        f"{_ms(seconds)}, of which compute {_ms(timings.compute_s)},\n"
        f"queue {_ms(timings.queue_s)}, tokenise {_ms(timings.tokenise_s)}; "
        f"{ranking.usage.computed_tokens} tokens computed",
        caption_justify="left",
    )
    table.add_column("score", justify="right", style="cyan")
    table.add_column("document")
    for ranked in ranking:
        table.add_row(f"{ranked.score:.4f}", ranked.document)
    return table


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


if __name__ == "__main__":
    # The server's libraries would otherwise draw bars of their own between our lines.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    sys.exit(main())
