"""Commands of `python -m server` that prepare models."""

import argparse
import sys
from collections.abc import Sequence

from server.models.embedded import EMBEDDED_MODEL_ID, materialise

__all__ = ["materialise_command"]


def materialise_command(arguments: Sequence[str]) -> int:
    """Write the embedded cross-encoder out as a checkpoint folder and print where it is."""
    parser = argparse.ArgumentParser(
        prog="python -m server materialise",
        description=f"Write {EMBEDDED_MODEL_ID}, which comes inside a Python package, as a normal checkpoint "
        "folder into the user's cache directory (RERANK_CACHE_DIR changes it), and print the folder.",
    )
    parser.parse_args(arguments)
    folder = materialise(lambda what, share: print(f"{share:4.0%} {what}", file=sys.stderr))
    print(folder)
    return 0
