"""Counting the fields of a serialised message without parsing it."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from rerank.v1 import rerank_pb2

from server.errors import InvalidRequest, TooLarge
from server.transport.grpc_fields import OTHER_FIELDS, FieldLimits

LIMIT = 10
REQUEST = FieldLimits(rerank_pb2.RerankRequest.DESCRIPTOR, LIMIT)
STREAM = FieldLimits(rerank_pb2.RerankStreamRequest.DESCRIPTOR, LIMIT)


def request(documents: int) -> rerank_pb2.RerankRequest:
    return rerank_pb2.RerankRequest(
        query="a query", documents=["é" * n for n in range(documents)], top_n=300, raw_scores=True
    )


@given(st.integers(0, 3 * LIMIT))
def test_a_request_is_refused_exactly_when_it_has_too_many_documents(documents: int) -> None:
    """The count before parsing is the count after it."""
    data = request(documents).SerializeToString()
    if documents <= LIMIT:
        REQUEST.check(data)
        return
    with pytest.raises(TooLarge, match=r"documents: the request has too many documents; the limit is 10"):
        REQUEST.check(data)


@given(st.lists(st.integers(0, LIMIT), max_size=4))
def test_documents_inside_a_message_are_added_up(parts: list[int]) -> None:
    """The parser merges a field that comes several times, and so does the count."""
    data = b"".join(
        rerank_pb2.RerankStreamRequest(id="a", request=request(n)).SerializeToString() for n in parts
    )
    merged = rerank_pb2.RerankStreamRequest.FromString(data)
    assert len(merged.request.documents) == sum(parts)
    if sum(parts) <= LIMIT:
        STREAM.check(data)
        return
    with pytest.raises(TooLarge):
        STREAM.check(data)


@pytest.mark.parametrize(
    "field", [b"\x0a\x00", b"\x18\x01", b"\xfa\x07\x00", b"\xf3\x03\xf4\x03", b"\x0d\x00\x00\x00\x00"]
)
def test_fields_without_end_are_refused(field: bytes) -> None:
    """Unknown ones, and known ones that are sent again and again, of every wire type."""
    REQUEST.check(field * (OTHER_FIELDS // 2))
    with pytest.raises(InvalidRequest, match="send each field once"):
        REQUEST.check(field * (OTHER_FIELDS + 1))


@given(st.binary(max_size=300))
def test_whatever_is_no_message_is_left_to_the_parser(data: bytes) -> None:
    """Counting ends on any bytes, and refuses only what has too many documents."""
    try:
        REQUEST.check(data)
    except TooLarge:
        return
    try:
        parsed = rerank_pb2.RerankRequest.FromString(data)
    except DecodeError:
        return
    assert len(parsed.documents) <= LIMIT


@given(st.integers(0, 2**20), st.integers(1, 40))
def test_lengths_that_lie_end_the_count(length: int, cut: int) -> None:
    """A field that claims more bytes than there are is the last one."""
    lying = b"\x12" + length.to_bytes(4, "little") + bytes(cut)
    REQUEST.check(lying)
