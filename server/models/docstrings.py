"""A corpus that every machine has: docstrings of Python's standard library.

Read from source by `ast`, never imported, so that no module runs. The text depends
on the Python version alone, which the results record.
"""

import ast
import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from server.models.bm25 import Bm25

__all__ = ["Docstring", "bodies_found_for", "read_docstrings", "shuffled_docstrings"]

# Tests, vendored packages and tools whose docstrings say little.
SKIPPED_FOLDERS = frozenset(
    {
        "test",
        "tests",
        "idlelib",
        "lib2to3",
        "site-packages",
        "ensurepip",
        "turtledemo",
        "pydoc_data",
        "tkinter",
    }
)
MIN_SUMMARY_CHARACTERS = 20
MIN_BODY_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class Docstring:
    """A docstring cut in two: what a user would ask, and the passage that answers."""

    summary: str
    body: str


@cache
def read_docstrings() -> tuple[Docstring, ...]:
    """All docstrings long enough to be a question and an answer, without duplicates, in a fixed order."""
    unique: dict[str, Docstring] = {}
    summaries: set[str] = set()
    for docstring in _walk(Path(sysconfig.get_path("stdlib"))):
        if docstring.body not in unique and docstring.summary not in summaries:
            unique[docstring.body] = docstring
            summaries.add(docstring.summary)
    return tuple(unique.values())


@cache
def shuffled_docstrings() -> tuple[Docstring, ...]:
    """The same in the order of a hash: neighbours in the library are alike, and a seeded shuffle may
    differ between versions of Python."""

    def place(docstring: Docstring) -> bytes:
        return hashlib.blake2b(docstring.summary.encode(), digest_size=8).digest()

    return tuple(sorted(read_docstrings(), key=place))


def bodies_found_for(query: str, count: int) -> list[int]:
    """Where among `shuffled_docstrings` the best bodies lie by BM25, best first; at most `count`."""
    return _index().top(query, count)


@cache
def _index() -> Bm25:
    return Bm25([docstring.body for docstring in shuffled_docstrings()])


def _walk(root: Path) -> Iterator[Docstring]:
    for path in sorted(root.rglob("*.py")):
        if SKIPPED_FOLDERS.isdisjoint(path.relative_to(root).parts):
            try:
                tree = ast.parse(path.read_bytes())
            except (SyntaxError, ValueError):  # a few files of the library are broken on purpose
                continue
            yield from _docstrings_of(tree)


def _docstrings_of(tree: ast.Module) -> Iterator[Docstring]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            summary, _, body = (ast.get_docstring(node) or "").partition("\n")
            summary, body = summary.strip(), body.strip()
            if len(summary) >= MIN_SUMMARY_CHARACTERS and len(body) >= MIN_BODY_CHARACTERS:
                yield Docstring(summary, body)
