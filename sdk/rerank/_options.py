"""The options of one rerank call, checked before anything is sent."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from rerank._errors import InvalidRequestError
from rerank.v1 import rerank_pb2 as wire

__all__ = ["Priority", "PriorityLike", "RerankOptions", "Truncation", "TruncationLike"]

UINT32_MAX = 2**32 - 1


class Truncation(StrEnum):
    """What happens to a document that is longer than the model can read.

    END cuts the document's end (never the query). ERROR refuses the request. CHUNK
    scores overlapping windows, takes the best and reports it as `RankedDocument.span`.
    """

    END = "end"
    ERROR = "error"
    CHUNK = "chunk"


class Priority(StrEnum):
    """Who goes first on a busy server: BATCH yields to INTERACTIVE, but is never starved."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


TruncationLike = Truncation | Literal["end", "error", "chunk"]
PriorityLike = Priority | Literal["interactive", "batch"]

_TRUNCATION_ON_WIRE = {
    Truncation.END: wire.TRUNCATION_END,
    Truncation.ERROR: wire.TRUNCATION_ERROR,
    Truncation.CHUNK: wire.TRUNCATION_CHUNK,
}
_PRIORITY_ON_WIRE = {
    Priority.INTERACTIVE: wire.PRIORITY_INTERACTIVE,
    Priority.BATCH: wire.PRIORITY_BATCH,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankOptions:
    """Everything that a call says beside its query and documents; None is the server's default."""

    top_n: int | None = None
    raw_scores: bool = False
    truncation: TruncationLike | None = None
    max_tokens_per_document: int | None = None
    model: str | None = None
    priority: PriorityLike | None = None
    instruction: str | None = None

    def __post_init__(self) -> None:
        _check_count("top_n", self.top_n)
        _check_count("max_tokens_per_document", self.max_tokens_per_document)
        _check_choice("truncation", self.truncation, Truncation)
        _check_choice("priority", self.priority, Priority)
        for field, value in (("model", self.model), ("instruction", self.instruction)):
            if value is not None:
                encoded_length(field, value)

    def request(self, query: str) -> wire.RerankRequest:
        """Return the request without its documents."""
        if not isinstance(query, str):
            raise InvalidRequestError(f"query: must be a string, not {type(query).__name__}", field="query")
        if not query.strip():
            raise InvalidRequestError("query: must not be blank", field="query")
        encoded_length("query", query)
        return wire.RerankRequest(
            query=query,
            # More than there are means all, so a number too big for the wire loses nothing.
            top_n=min(self.top_n or 0, UINT32_MAX),
            raw_scores=self.raw_scores,
            truncation=_TRUNCATION_ON_WIRE[Truncation(self.truncation)]
            if self.truncation
            else wire.TRUNCATION_UNSPECIFIED,
            max_tokens_per_document=min(self.max_tokens_per_document or 0, UINT32_MAX),
            model=self.model or "",
            priority=_PRIORITY_ON_WIRE[Priority(self.priority)]
            if self.priority
            else wire.PRIORITY_UNSPECIFIED,
            instruction=self.instruction or "",
        )


def encoded_length(field: str, value: str) -> int:
    """Return how many bytes `value` takes on the wire, or say why it can't go there."""
    if value.isascii():
        return len(value)
    try:
        return len(value.encode())
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            f"{field}: is not valid Unicode: half a surrogate pair at position {error.start}; "
            "decode the source with errors='replace'",
            field=field,
        ) from None


def _check_count(field: str, value: int | None) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidRequestError(f"{field}: must be a whole number from 0, not {value!r}", field=field)


def _check_choice(field: str, value: str | None, choices: type[StrEnum]) -> None:
    if value is None or value in list(choices):
        return
    names = ", ".join(repr(str(choice)) for choice in choices)
    raise InvalidRequestError(f"{field}: must be one of {names}, not {value!r}", field=field)
