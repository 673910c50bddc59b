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
    "QueryText",
    "Usage",
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


class Answer(msgspec.Struct):
    """Base of answers; a field that is unset is not written at all."""


class Usage(msgspec.Struct):
    """Tokens as OpenAI's clients count them."""

    prompt_tokens: int
    total_tokens: int


@dataclass(frozen=True, slots=True)
class Dialect(Generic[R]):
    """One format of requests and answers."""

    name: str
    request: type[R]
    answer: Any
    """The type of the answer, for the OpenAPI document."""
    queries: Callable[[R, Facts], Sequence[RerankQuery]]
    """What the request asks of the reranker: one query, for all dialects but /score.

    Raises InvalidRequest.
    """
    render: Callable[[R, Sequence[Ranking], Facts], object]
    """The answer to encode as JSON."""
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
