"""Rankings as values, and the advice about documents that aren't strings."""

from dataclasses import FrozenInstanceError, dataclass
from typing import Any

import pytest
from rerank import FailedDocument, FakeRerankClient, InvalidRequestError, RankedDocument, Ranking


@dataclass(frozen=True)
class Page:
    page_content: str


RANKING = Ranking(
    [RankedDocument(2, 0.91234567, "c"), RankedDocument(0, 0.5, "a")], model="a-model", request_id="id"
)


def test_a_ranking_is_a_sequence() -> None:
    """Length, index, slice, iteration, membership and reversal work as for a tuple."""
    assert len(RANKING) == 2
    assert RANKING[0].document == "c"
    assert RANKING[-1].document == "a"
    assert RANKING[:1] == (RANKING[0],)
    assert [ranked.index for ranked in reversed(RANKING)] == [0, 2]
    assert RANKING[1] in RANKING
    assert RANKING.index(RANKING[1]) == 1
    with pytest.raises(IndexError):
        RANKING[2]


def test_a_ranking_cannot_be_changed() -> None:
    """Neither the ranking nor what it holds has a way to be modified."""
    changes: Any = RANKING
    with pytest.raises(AttributeError):
        changes.model = "another"
    with pytest.raises(TypeError):
        changes[0] = None
    with pytest.raises(FrozenInstanceError):
        changes[0].score = 1.0


def test_a_ranking_is_short_to_look_at() -> None:
    """The repr shows the best few, whatever the length."""
    assert repr(RANKING) == "<Ranking of 2 [#2 0.9123, #0 0.5000] by a-model>"
    long = Ranking(
        [RankedDocument(index, 0.5, "x" * 10_000) for index in range(1000)],
        failures=[FailedDocument(1000, "NaN", "y")],
        model="m",
    )
    assert repr(long) == "<Ranking of 1000, 1 failed [#0 0.5000, #1 0.5000, #2 0.5000, …] by m>"


def test_an_empty_ranking_is_false() -> None:
    """Like every sequence, a ranking without documents is false."""
    empty: Ranking[str] = Ranking()
    assert not empty
    assert empty.documents == ()


@pytest.mark.parametrize(
    ("document", "advice"),
    [
        ({"text": "a"}, "text=lambda document: document['text']"),
        ({"id": 7, "content": "a"}, "text=lambda document: document['content']"),
        ({"id": 7, "passage": "a"}, "text=lambda document: document['passage']"),
        ({}, "text=lambda document: document['text']"),
        (Page("a"), "text=lambda document: document.page_content"),
        (object(), "text=lambda document: document.text"),
        (None, "text=lambda document: document.text"),
        (b"bytes", "text=bytes.decode"),
    ],
)
def test_the_advice_fits_the_documents(document: object, advice: str) -> None:
    """Documents that aren't strings are refused with the argument that would make them work."""
    with pytest.raises(InvalidRequestError) as caught:
        FakeRerankClient().rerank("query", ["fine", document])
    assert advice in caught.value.message
    assert caught.value.field == "documents[1]"


def test_text_must_return_strings() -> None:
    """What text= returns is checked too."""
    returns_none: Any = lambda document: None  # noqa: E731
    with pytest.raises(InvalidRequestError, match=r"documents\[0\]: text= returned NoneType"):
        FakeRerankClient().rerank("query", [1], text=returns_none)


@pytest.mark.parametrize("documents", ["text", b"text", {"a": "b"}])
def test_one_document_is_no_list(documents: Any) -> None:
    """A single string in place of the list is the mistake that everybody makes once."""
    with pytest.raises(InvalidRequestError, match="put it in a list"):
        FakeRerankClient().rerank("query", documents)
