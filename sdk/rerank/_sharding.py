"""How a long list of documents is cut into requests; pure arithmetic."""

from collections.abc import Sequence
from dataclasses import dataclass

from rerank._errors import TooLargeError
from rerank._model_info import Limits

__all__ = ["ShardLimits", "document_cost_bytes", "is_cured_by_splitting", "split"]

DEFAULT_MAX_REQUEST_BYTES = 4 * 1024 * 1024
DEFAULT_MAX_REQUEST_DOCUMENTS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardLimits:
    """What one request may hold before the client sends another one beside it."""

    max_bytes: int = DEFAULT_MAX_REQUEST_BYTES
    max_documents: int = DEFAULT_MAX_REQUEST_DOCUMENTS

    def __post_init__(self) -> None:
        for field, value in (
            ("max_request_bytes", self.max_bytes),
            ("max_request_documents", self.max_documents),
        ):
            if value < 1:
                raise ValueError(f"{field}: must be at least 1, not {value}")

    def narrowed(self, server: Limits, error: TooLargeError) -> "ShardLimits":
        """Return limits that this server accepts as well; raise the error if these do already."""
        narrower = ShardLimits(
            # 0 is how a server says that it has no such limit.
            max_bytes=min(self.max_bytes, server.max_request_bytes or self.max_bytes),
            max_documents=min(self.max_documents, server.max_documents or self.max_documents),
        )
        if narrower == self:
            raise error
        return narrower


def is_cured_by_splitting(error: TooLargeError) -> bool:
    """Whether the request as a whole was too large, and not its query or one of its documents."""
    return error.field in ("", "documents")


def document_cost_bytes(text_bytes: int) -> int:
    """Return what a text costs as an element of a repeated protobuf field: tag, length, text."""
    length_bytes = max(1, (text_bytes.bit_length() + 6) // 7)
    return 1 + length_bytes + text_bytes


def split(costs: Sequence[int], *, max_bytes: int, max_documents: int) -> list[range]:
    """Cut documents of these costs into consecutive ranges that respect both limits.

    The number of documents is spread evenly, since the call is as slow as its longest
    part. A document that exceeds max_bytes by itself gets a request of its own, and the
    server decides: it knows its limits, the client only guesses.

    Example:
        >>> split([1, 1, 1, 9, 1], max_bytes=4, max_documents=2)
        [range(0, 2), range(2, 3), range(3, 4), range(4, 5)]
    """
    if not costs:
        return []
    parts = -(-len(costs) // max_documents)
    documents_per_part = -(-len(costs) // parts)
    ranges: list[range] = []
    start, used_bytes = 0, 0
    for index, cost in enumerate(costs):
        full = index - start == documents_per_part or used_bytes + cost > max_bytes
        if full and index > start:
            ranges.append(range(start, index))
            start, used_bytes = index, 0
        used_bytes += cost
    ranges.append(range(start, len(costs)))
    return ranges
