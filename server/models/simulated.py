"""The `simulated` model: deterministic scores at a stated speed, without weights.

Sixty-four "GPUs" run on a laptop with it: fleet tests, chaos tests and capacity
planning exercise everything of a real server but the arithmetic. Scores follow
the share of the query's words that the document contains, so rankings look
sensible; tokens are words.

It fails on request, too. A document that contains one of these words makes the
device do what the word says, and batches above `memory_tokens` run out of memory:

    simulate_nan          the pair's logit is NaN
    simulate_error        every batch that holds the pair raises
    simulate_stuck        the batch never ends
    simulate_lost         the device is gone for good
    simulate_broken       from now on every batch raises, whatever is in it
    simulate_squeezed     from now on batches above 100 tokens run out of memory
"""

import hashlib
import itertools
import math
import re
import time
import zlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from server.config import SimulatedModelSettings
from server.errors import TooLarge
from server.models.base import (
    DeviceLost,
    DeviceOutOfMemory,
    EncodedDocument,
    EncodedPair,
    EncodedQuery,
    Logits,
    ModelInfo,
    TokenIds,
    Windowing,
)

__all__ = ["FAILURE_WORDS", "SIMULATED_MODEL_ID", "SimulatedModel"]

SIMULATED_MODEL_ID = "simulated"
DEFAULT_TOKEN_BUDGET = 2048
SPECIAL_TOKENS = 3
_CLASSIFY, _SEPARATE = 0, 1
# Beyond the ids of ordinary words.
_NAN, _ERROR, _STUCK, _LOST, _BROKEN, _SQUEEZED = 40_001, 40_002, 40_003, 40_004, 40_005, 40_006
_FAILURES = {
    "simulate_nan": _NAN,
    "simulate_error": _ERROR,
    "simulate_stuck": _STUCK,
    "simulate_lost": _LOST,
    "simulate_broken": _BROKEN,
    "simulate_squeezed": _SQUEEZED,
}
FAILURE_WORDS = tuple(_FAILURES)
"""Words that make the device fail; whoever sends arbitrary text may want to leave them out."""
SQUEEZED_TOKENS = 100
LONGEST_TEXT = 2**20
"""Characters of a document beyond which no words are looked for."""
_WORD = re.compile(r"\w+|[^\w\s]", re.UNICODE)


@dataclass(frozen=True, slots=True)
class _Done:
    """A batch that takes until `ready_at_s`, as if a device were busy with it."""

    logits: Logits
    ready_at_s: float

    def wait(self) -> Logits:
        """Sleep for the rest of the simulated computing time."""
        while self.ready_at_s == math.inf:
            time.sleep(1.0)
        remaining_s = self.ready_at_s - time.monotonic()
        if remaining_s > 0:
            time.sleep(remaining_s)
        return self.logits


class SimulatedModel:
    """Implements `server.models.base.Model`."""

    def __init__(self, settings: SimulatedModelSettings) -> None:
        time.sleep(settings.startup_s)
        self._tokens_per_second = settings.tokens_per_second
        self._memory_tokens = settings.memory_tokens or math.inf
        self._broken = False
        self._free_at_s = 0.0
        self.info = ModelInfo(
            model_id=SIMULATED_MODEL_ID,
            revision="1",
            architecture="SimulatedCrossEncoder",
            execution=f"simulated {settings.tokens_per_second:g} tokens/s",
            fingerprint=hashlib.blake2b(
                f"simulated 1 {settings.max_tokens}".encode(), digest_size=16
            ).hexdigest(),
            max_tokens=settings.max_tokens,
            accepts_instruction=False,
            default_token_budget=DEFAULT_TOKEN_BUDGET,
        )

    def encode_query(self, query: str, instruction: str = "") -> EncodedQuery:
        """One token per word; the instruction is not accepted and never arrives here."""
        ids = [_word_id(match.group()) for match in _WORD.finditer(query)]
        return EncodedQuery(head=_ids([_CLASSIFY, *ids, _SEPARATE]), tail=_ids([_SEPARATE]))

    def encode_documents(
        self, query: EncodedQuery, documents: Sequence[str], windowing: Windowing
    ) -> list[EncodedDocument]:
        """One token per word, in windows like those of a real model."""
        room = self.info.max_tokens - len(query.head) - len(query.tail)
        if room < 1:
            raise TooLarge(
                "query",
                "the query",
                actual=len(query.head) - 2,
                limit=self.info.max_tokens - SPECIAL_TOKENS - 1,
                unit="tokens",
            )
        window = min(room, windowing.max_document_tokens or room)
        return [self._encode_document(query, document, window, windowing) for document in documents]

    def _encode_document(
        self, query: EncodedQuery, document: str, window: int, windowing: Windowing
    ) -> EncodedDocument:
        stride = max(1, int(window * (1 - windowing.overlap)))
        # One more than can be read tells whether something was cut.
        readable = window + (windowing.max_windows - 1) * stride
        ids, starts, ends = _words(document, readable + 1)
        pairs, spans, end = [], [], 0
        for start in range(0, max(1, len(ids)), stride):
            end = min(start + window, len(ids))
            pairs.append(EncodedPair(query, ids[start:end]))
            spans.append((int(starts[start]), int(ends[end - 1])) if start < end else (0, 0))
            if end >= len(ids) or len(pairs) == windowing.max_windows:
                break
        return EncodedDocument(
            tuple(pairs), truncated=end < len(ids), spans=tuple(spans) if windowing.max_windows > 1 else ()
        )

    def submit(self, pairs: Sequence[EncodedPair]) -> _Done:
        """Score at once, and be done after the time that a device of this speed would take."""
        tokens = sum(pair.tokens for pair in pairs)
        present = {int(word) for pair in pairs for part in pair.parts for word in part[part >= _NAN]}
        if _SQUEEZED in present:
            self._memory_tokens = min(self._memory_tokens, SQUEEZED_TOKENS)
        self._broken |= _BROKEN in present
        if tokens > self._memory_tokens:
            raise DeviceOutOfMemory(f"{tokens} tokens do not fit into {self._memory_tokens}")
        if _LOST in present:
            raise DeviceLost("simulated")
        if self._broken or _ERROR in present:
            raise RuntimeError("simulated")
        started_s = max(time.monotonic(), self._free_at_s)
        self._free_at_s = started_s + tokens / self._tokens_per_second
        ready_at_s = math.inf if _STUCK in present else self._free_at_s
        return _Done(np.array([_logit(pair) for pair in pairs], dtype=np.float32), ready_at_s)

    def close(self) -> None:
        """Nothing to free."""


def _word_id(word: str) -> int:
    if word in _FAILURES:
        return _FAILURES[word]
    return 2 + zlib.crc32(word.lower().encode("utf-8", "surrogatepass")) % 30_000


def _ids(values: list[int]) -> TokenIds:
    return np.array(values, dtype=np.int32)


def _words(document: str, most: int) -> tuple[TokenIds, TokenIds, TokenIds]:
    """The first words' ids and where each begins and ends, in arrays: there may be millions."""
    ids, starts, ends = array("i"), array("i"), array("i")
    # A search lets no other thread in before it has found something, and blanks have no end.
    for match in itertools.islice(_WORD.finditer(document, 0, LONGEST_TEXT), most):
        ids.append(_word_id(match.group()))
        starts.append(match.start())
        ends.append(match.end())
    return np.array(ids, np.int32), np.array(starts, np.int32), np.array(ends, np.int32)


def _logit(pair: EncodedPair) -> float:
    if any(_NAN in part for part in pair.parts):
        return math.nan
    query = set(pair.query.head[1:-1].tolist())
    document = set(pair.document_ids.tolist())
    share = len(query & document) / max(1, len(query))
    # A little of the document itself breaks ties between documents with equal overlap.
    nuance = zlib.crc32(pair.token_ids.tobytes()) / 2**32
    return 12.0 * share - 6.0 + 0.5 * nuance
