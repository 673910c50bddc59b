"""Tokenising and hashing off the event loop, in pieces: small requests get between those of large ones."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from server.engine.pair_cache import PairKeys
from server.models.base import EncodedDocument, EncodedQuery, Model, Windowing

__all__ = ["Tokenising"]

PIECE_DOCUMENTS = 64
PIECE_CHARACTERS = 256 * 1024
THREADS = 2
# Below this, handing texts to a thread takes longer than hashing them.
SMALL_CHARACTERS = 64 * 1024

P = ParamSpec("P")
T = TypeVar("T")


class Tokenising:
    """A few threads with a model's tokenizer."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="tokenise")

    async def keys(self, keys: PairKeys, documents: Sequence[str]) -> list[bytes]:
        """The cache's keys of documents, in order."""
        if sum(map(len, documents)) < SMALL_CHARACTERS:
            return keys.of(documents)
        found: list[bytes] = []
        for positions in _pieces(documents):
            found += await self._run(keys.of, documents[positions.start : positions.stop])
        return found

    async def query(self, query: str, instruction: str) -> EncodedQuery:
        """Tokenise a query."""
        return await self._run(self._model.encode_query, query, instruction)

    async def documents(
        self, query: EncodedQuery, documents: Sequence[str], windowing: Windowing
    ) -> AsyncIterator[tuple[range, list[EncodedDocument]]]:
        """Yield (positions, their documents) piece by piece, in order."""
        for positions in _pieces(documents):
            piece = [documents[i] for i in positions]
            yield positions, await self._run(self._model.encode_documents, query, piece, windowing)

    def close(self) -> None:
        """Give the threads back; pieces that have not begun are dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _run(self, function: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: function(*arguments, **keywords))


def _pieces(documents: Sequence[str]) -> list[range]:
    """Cut the documents into runs of few documents and few characters."""
    pieces: list[range] = []
    start = characters = 0
    for position, document in enumerate(documents):
        full = position - start == PIECE_DOCUMENTS or characters + len(document) > PIECE_CHARACTERS
        if full and position > start:
            pieces.append(range(start, position))
            start, characters = position, 0
        characters += len(document)
    if start < len(documents):
        pieces.append(range(start, len(documents)))
    return pieces
