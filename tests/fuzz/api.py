"""Requests of every shape that the contract can carry, and what their answers must be."""

import grpc
from hypothesis import strategies as st
from rerank.v1 import rerank_pb2

from tests.support.texts import harmless_texts

__all__ = ["METADATA", "REQUESTS", "check_failure", "check_response"]

# What a request alone can be to blame for. UNKNOWN, INTERNAL and UNAVAILABLE are never its fault.
REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}
INSIDES = ("Traceback", 'File "', "site-packages", ".py")
UINT32 = st.integers(0, 2**32 - 1)
_TEXT = st.one_of(
    harmless_texts(max_size=40),
    st.sampled_from(["", " ", "\x00", "\u202e", "e\u0301" * 30, "\U0001f469\u200d\U0001f4bb", "a" * 5000]),
    st.lists(st.sampled_from(["red", "fox", "simulate_nan", "simulate_error", "."]), max_size=30).map(
        " ".join
    ),
)
_ENUM = st.one_of(st.integers(0, 4), st.integers(-(2**31), 2**31 - 1))


def _optional(strategy: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.one_of(st.none(), strategy)


REQUESTS: st.SearchStrategy[rerank_pb2.RerankRequest] = st.builds(
    lambda **fields: rerank_pb2.RerankRequest(
        **{name: value for name, value in fields.items() if value is not None}
    ),
    query=_TEXT,
    documents=st.lists(_TEXT, max_size=12),
    top_n=_optional(st.one_of(st.integers(0, 15), UINT32)),
    return_documents=_optional(st.booleans()),
    raw_scores=_optional(st.booleans()),
    truncation=_optional(_ENUM),
    max_tokens_per_document=_optional(st.one_of(st.integers(0, 20), UINT32)),
    model=_optional(st.one_of(st.just(""), st.just("simulated"), _TEXT)),
    priority=_optional(_ENUM),
    instruction=_optional(st.one_of(st.just(""), _TEXT)),
)

METADATA: st.SearchStrategy[list[tuple[str, str]]] = st.lists(
    st.tuples(
        st.sampled_from(["x-request-id", "authorization", "x-api-key", "x-anything"]),
        st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=200),
    ),
    max_size=3,
)


def check_response(request: rerank_pb2.RerankRequest, response: rerank_pb2.RerankResponse) -> None:
    """Every document is ranked, failed, or cut off by top_n; the best come first."""
    indices = [result.index for result in response.results]
    failed = [failure.index for failure in response.failures]
    assert len({*indices, *failed}) == len(indices) + len(failed)
    assert all(0 <= index < len(request.documents) for index in (*indices, *failed))
    scorable = len(request.documents) - len(failed)
    assert len(indices) == (min(scorable, request.top_n) if request.top_n else scorable)
    scores = [result.relevance_score for result in response.results]
    assert scores == sorted(scores, reverse=True)
    assert request.raw_scores or all(0 <= score <= 1 for score in scores)
    if request.return_documents:
        assert all(result.document == request.documents[result.index] for result in response.results)


def check_failure(request: rerank_pb2.RerankRequest, failure: grpc.Call) -> None:
    """A refusal says why in its own words, and names the call; a poisoned request may fail as a whole."""
    poisoned = "simulate_" in request.query or all("simulate_" in document for document in request.documents)
    allowed = REFUSALS | ({grpc.StatusCode.INTERNAL} if poisoned else set())
    assert failure.code() in allowed, (failure.code(), failure.details())
    details = failure.details() or ""
    assert details
    assert not any(inside in details for inside in INSIDES), details
    assert dict(failure.trailing_metadata() or ()).get("x-request-id")
