"""Scores of pairs that were seen before, in this process's memory.

A key is a 128-bit BLAKE2b hash of everything that decides the score: the model's
fingerprint, the tokenising parameters, the instruction, the query and the
document, each length-prefixed so that no two inputs run together. The least
recently used entries leave when the bytes are used up.
"""

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cachetools import LRUCache

from server.models.base import Windowing

__all__ = ["PairCache", "PairKeys", "PairScore"]

KEY_BYTES = 16
# tracemalloc on CPython 3.11 says 258: the key, the packed value and their two dictionary entries.
# The rest is headroom for the dictionaries when they have just grown.
ENTRY_BYTES = 320

# logit, tokens, truncated, whether there is a span, span start, span end
_PACKED = struct.Struct("<fI??II")


@dataclass(frozen=True, slots=True)
class PairScore:
    """What the model said of one (query, document) pair."""

    logit: float
    """As float32."""
    tokens: int
    """Tokens read, over all windows."""
    truncated: bool
    span: tuple[int, int] | None = None
    """The winning window in characters of the document, when windows were asked for."""

    def pack(self) -> bytes:
        """The score in 18 bytes."""
        start, end = self.span or (0, 0)
        return _PACKED.pack(self.logit, self.tokens, self.truncated, self.span is not None, start, end)

    @staticmethod
    def unpack(packed: bytes) -> "PairScore":
        """The inverse of `pack`."""
        logit, tokens, truncated, has_span, start, end = _PACKED.unpack(packed)
        return PairScore(logit, tokens, truncated, (start, end) if has_span else None)


class PairKeys:
    """Keys of the documents of one query."""

    def __init__(self, fingerprint: str, query: str, instruction: str, windowing: Windowing) -> None:
        self._query = hashlib.blake2b(digest_size=KEY_BYTES)
        parameters = f"{windowing.max_document_tokens} {windowing.max_windows} {windowing.overlap}"
        for part in (fingerprint, parameters, instruction, query):
            encoded = part.encode("utf-8", "surrogatepass")
            self._query.update(len(encoded).to_bytes(8, "little") + encoded)

    def of(self, documents: Iterable[str]) -> list[bytes]:
        """One key per document, in order."""
        keys = []
        start = self._query.copy
        for document in documents:
            key = start()
            key.update(document.encode("utf-8", "surrogatepass"))
            keys.append(key.digest())
        return keys


class PairCache:
    """A least-recently-used cache bounded by bytes. Not thread-safe: it lives on the event loop."""

    def __init__(self, max_bytes: int) -> None:
        self._entries: LRUCache[bytes, bytes] = LRUCache(maxsize=max(0, max_bytes // ENTRY_BYTES))

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def used_bytes(self) -> int:
        """Memory that the entries take."""
        return len(self._entries) * ENTRY_BYTES

    def get_many(self, keys: Sequence[bytes]) -> list[PairScore | None]:
        """The scores of the keys, None where unknown."""
        get, unpack = self._entries.get, PairScore.unpack
        return [None if packed is None else unpack(packed) for packed in map(get, keys)]

    def put(self, key: bytes, score: PairScore) -> None:
        """Remember a score."""
        if self._entries.maxsize > 0:
            self._entries[key] = score.pack()
