"""What a dialect is: how it reads a request, writes an answer, and says what went wrong.

Requests and answers are msgspec structs, so that one declaration parses, writes, and
describes itself in the OpenAPI document.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeAlias, TypeVar

import msgspec

from server.reranker import Ranking, RerankQuery
from server.transport.http.errors import HttpError, combined_body

__all__ = [
    "Answer",
    "AnyDialect",
    "Count",
    "Dialect",
    "DocumentObject",
    "Facts",
    "FailedDocument",
    "QueryText",
    "Usage",
    "failed_documents",
    "total_tokens",
]

Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]
# For the OpenAPI document only: the reranker says it better than a pattern does.
QueryText: TypeAlias = Annotated[
    str,
    msgspec.Meta(
        description="What is asked; not blank.", extra_json_schema={"pattern": r"[^\s\x1c-\x1f\x85]"}
    ),
]
DocumentObject: TypeAlias = Annotated[
    dict[str, Any],
    msgspec.Meta(
        description="Its `text` is scored, or what rank_fields names.",
        extra_json_schema={"required": ["text"], "properties": {"text": {"type": "string"}}},
    ),
]
R = TypeVar("R", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Facts:
    """What a dialect may know besides the request."""

    model: str
    """The model that is served."""
    return_documents: bool
    """Whether documents are echoed to callers who don't say."""
    request_id: str
    created: int
    """Unix time in seconds."""
    path: str
    """The request's path."""
    max_documents: int
    max_request_bytes: int


class Answer(msgspec.Struct):
    """Base of answers; a field that is unset is not written at all."""


class Usage(msgspec.Struct):
    """Tokens as OpenAI's clients count them."""

    prompt_tokens: int
    total_tokens: int


class FailedDocument(msgspec.Struct):
    """A document that could not be scored."""

    index: int
    reason: str


@dataclass(frozen=True, slots=True)
class Dialect(Generic[R]):
    """One format of requests and answers."""

    name: str
    request: type[R]
    answer: Any
    """The type of the answer, for the OpenAPI document."""
    queries: Callable[[R, Facts], Sequence[RerankQuery]]
    """What the request asks of the reranker: one query, for all dialects but /score.

    Raises InvalidRequest and TooLarge; what is built stays within the facts' limits.
    """
    render: Callable[[R, Sequence[RerankQuery], Sequence[Ranking], Facts], object]
    """The answer to encode as JSON; `queries` have the texts that were scored."""
    error: Callable[[HttpError], object] = combined_body
    """The body of an error."""


AnyDialect: TypeAlias = Dialect[Any]


def total_tokens(rankings: Sequence[Ranking]) -> int:
    """Tokens of the request, for clients that account by them.

    Pairs from the cache cost nothing, but a usage of 0 makes accounting fail: then it is
    the tokens of the documents that are answered.
    """
    return sum(
        max(ranking.usage.computed_tokens, sum(result.tokens for result in ranking.results))
        for ranking in rankings
    )


def failed_documents(queries: Sequence[RerankQuery], rankings: Sequence[Ranking]) -> list[FailedDocument]:
    """What could not be scored, by its place among the documents of all queries."""
    failed = []
    start = 0
    for query, ranking in zip(queries, rankings, strict=True):
        failed += [FailedDocument(start + index, failure.reason) for index, failure in ranking.failures]
        start += len(query.documents)
    return failed
