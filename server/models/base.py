"""The protocol between the engine and whatever scores pairs.

A model turns one query and its documents into *encoded pairs* (token ids in the
model's own template), and a batch of encoded pairs into float32 logits. It knows
nothing of requests, deadlines or priorities.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "DeviceLost",
    "DeviceOutOfMemory",
    "EncodedDocument",
    "EncodedPair",
    "EncodedQuery",
    "Logits",
    "Model",
    "ModelInfo",
    "PendingLogits",
    "TokenIds",
    "Windowing",
]

TokenIds: TypeAlias = NDArray[np.int32]
Logits: TypeAlias = NDArray[np.float32]


class DeviceOutOfMemory(Exception):
    """A batch did not fit into the device's memory; a smaller one may. The model has freed its caches."""


class DeviceLost(Exception):
    """The device no longer works in this process; only a restart helps."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is true of a loaded model for as long as the process lives."""

    model_id: str
    """What callers put into a request's `model`: a hub id or the folder's name."""
    revision: str
    """Commit of the hub, or a hash of the local files."""
    architecture: str
    """Class of the network, such as XLMRobertaForSequenceClassification."""
    execution: str
    """How it runs, for people: "torch packed float16 cuda:0"."""
    fingerprint: str
    """Equal for two servers exactly when they give equal logits; part of every cache key."""
    max_tokens: int
    """Most tokens of one pair, special tokens included."""
    accepts_instruction: bool
    """Whether the template has a place for a task description."""
    default_token_budget: int
    """Tokens of one batch, unless configured or tuned at warm-up."""
    overlaps: bool = False
    """Whether `submit` returns before the device is done: the next batch can be assembled meanwhile."""


@dataclass(frozen=True, slots=True)
class EncodedQuery:
    """A query in the model's template: `head + document + tail` is one pair."""

    head: TokenIds
    """Token ids up to the document: for BERT `[CLS] query [SEP]`."""
    tail: TokenIds
    """Token ids after the document: for BERT `[SEP]`."""


@dataclass(frozen=True, slots=True)
class Windowing:
    """How much of a document is read, and in how many pieces."""

    max_document_tokens: int = 0
    """Upper bound on the document's tokens of one pair; 0 leaves only the model's limit."""
    max_windows: int = 1
    """1 cuts the end of long documents; more reads them in that many overlapping windows at most."""
    overlap: float = 0.25
    """Share of a window that the next one reads again."""


@dataclass(frozen=True, slots=True, eq=False)
class EncodedPair:
    """One (query, document window) pair, ready for the model.

    In parts, because thousands of pairs share a query, which may be longer than their documents.
    """

    query: EncodedQuery
    """The same object in all pairs of a query."""
    document_ids: TokenIds
    """Shape [tokens of the document's window]; perhaps a view into those of the whole document."""

    @property
    def tokens(self) -> int:
        """Number of tokens in the pair."""
        return len(self.query.head) + len(self.document_ids) + len(self.query.tail)

    @property
    def document_start(self) -> int:
        """Where the document begins in `token_ids`; BERT's second segment starts here."""
        return len(self.query.head)

    @property
    def parts(self) -> tuple[TokenIds, TokenIds, TokenIds]:
        """What stands one after the other: head, document, tail."""
        return self.query.head, self.document_ids, self.query.tail

    @property
    def token_ids(self) -> TokenIds:
        """The parts in one array of shape [tokens], made anew each time."""
        return np.concatenate(self.parts)

    @staticmethod
    def of(token_ids: TokenIds, document_start: int) -> "EncodedPair":
        """A pair out of its ids, shape [tokens], for a query that nobody shares."""
        query = EncodedQuery(head=token_ids[:document_start], tail=token_ids[:0])
        return EncodedPair(query, token_ids[document_start:])


@dataclass(frozen=True, slots=True, eq=False)
class EncodedDocument:
    """One document as the model will read it: one pair, or one pair per window."""

    pairs: tuple[EncodedPair, ...]
    truncated: bool
    """Whether some of the document is in none of the pairs."""
    spans: tuple[tuple[int, int], ...] = field(default=())
    """With several windows allowed: characters [start, end) of the document in each pair."""


class PendingLogits(Protocol):
    """A batch on its way through the device."""

    def wait(self) -> Logits:
        """Block until done and return the logits, shape [pairs], in the order of the batch.

        Raises:
            DeviceOutOfMemory: the batch did not fit.
            DeviceLost: the process must be restarted.
        """
        ...


class Model(Protocol):
    """A cross-encoder. `encode_*` are thread-safe; `submit` is called by one thread only."""

    @property
    def info(self) -> ModelInfo:
        """What is true of this model."""
        ...

    def encode_query(self, query: str, instruction: str = "") -> EncodedQuery:
        """Tokenise the query into the head and tail that all its pairs share."""
        ...

    def encode_documents(
        self, query: EncodedQuery, documents: Sequence[str], windowing: Windowing
    ) -> list[EncodedDocument]:
        """Tokenise documents for one query, cutting documents and never the query.

        Raises:
            TooLarge: the query alone leaves no room for a document.
        """
        ...

    def submit(self, pairs: Sequence[EncodedPair]) -> PendingLogits:
        """Start scoring one batch; raises like `PendingLogits.wait`."""
        ...

    def close(self) -> None:
        """Free the device."""
        ...
