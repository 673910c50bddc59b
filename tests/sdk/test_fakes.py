"""The clients that users' own tests get."""

from collections.abc import AsyncIterator

import pytest
from rerank import (
    AsyncFakeRerankClient,
    AsyncRerankClient,
    FakeRerankClient,
    InvalidRequestError,
    OverloadedError,
    Query,
    Ranking,
    RerankClient,
    ServingStatus,
)

DOCUMENTS = ["cats sleep", "pandas eat bamboo", "pandas sleep"]


def best(client: RerankClient, question: str) -> str:
    """Stands for a user's own function, written for the real client."""
    return client.rerank(question, DOCUMENTS, top_n=1)[0].document


async def best_async(client: AsyncRerankClient, question: str) -> str:
    """Stands for a user's own function, written for the real asynchronous client."""
    return (await client.rerank(question, DOCUMENTS, top_n=1))[0].document


async def test_a_fake_ranks_by_shared_words() -> None:
    """Without a scorer, documents with more of the query's words come first."""
    assert best(FakeRerankClient(), "what do pandas eat") == "pandas eat bamboo"
    assert await best_async(AsyncFakeRerankClient(), "what do pandas eat") == "pandas eat bamboo"


def test_a_fake_takes_the_users_scores() -> None:
    """A scorer's scores are the ranking's scores, to the last bit."""
    scores = dict(zip(DOCUMENTS, (0.1, 0.7, 0.30000000000000004), strict=True))
    ranking = FakeRerankClient(lambda query, text: scores[text]).rerank("query", DOCUMENTS)
    assert [(ranked.index, ranked.score) for ranked in ranking] == [
        (1, 0.7),
        (2, 0.30000000000000004),
        (0, 0.1),
    ]


def test_a_fake_records_what_it_was_asked() -> None:
    """calls holds the texts and options of each call, in order."""
    client = FakeRerankClient()
    client.rerank("first", [{"body": "text"}], text=lambda d: d["body"], top_n=3)
    list(client.rerank_many([Query(1, "second", ["a"]), Query(2, "third", ["b"])]))
    assert [(call.query, call.documents) for call in client.calls] == [
        ("first", ("text",)),
        ("second", ("a",)),
        ("third", ("b",)),
    ]
    assert client.calls[0].options.top_n == 3


def test_a_fake_checks_like_the_real_client() -> None:
    """What the real client would refuse, the fake refuses."""
    with pytest.raises(InvalidRequestError, match="query"):
        FakeRerankClient().rerank("", ["a"])
    with pytest.raises(InvalidRequestError, match="text=lambda"):
        FakeRerankClient().rerank("query", [{"text": "a"}])


def test_a_fake_fails_on_demand() -> None:
    """A scorer that raises makes the call fail, and one query of many fail alone."""

    def overloaded(query: str, text: str) -> float:
        if query == "bad":
            raise OverloadedError("busy", retry_after_s=1.0)
        return 0.5

    client = FakeRerankClient(overloaded)
    with pytest.raises(OverloadedError):
        client.rerank("bad", ["a"])
    outcomes = dict(client.rerank_many([Query(1, "bad", ["a"]), Query(2, "good", ["a"])]))
    assert isinstance(outcomes[1], OverloadedError)
    assert isinstance(outcomes[2], Ranking)


def test_a_fakes_scores_are_scores() -> None:
    """A scorer that returns something else than 0 to 1 is a mistake in the test."""
    with pytest.raises(ValueError, match="scorer"):
        FakeRerankClient(lambda query, text: 3.0).rerank("query", ["a"])


def test_raw_scores_of_a_fake_are_logits() -> None:
    """With raw_scores, a fake gives the logits of its scores, in the same order."""
    client = FakeRerankClient(lambda query, text: 0.5 if text == "even" else 0.25)
    ranking = client.rerank("query", ["low", "even"], raw_scores=True)
    assert ranking.documents == ("even", "low")
    assert ranking[0].score == 0.0
    assert ranking[1].score == pytest.approx(-1.0986122886681098)


def test_a_fake_is_ready_and_describes_itself() -> None:
    """Everything else works too, and nothing needs closing."""
    with FakeRerankClient(model="my-model") as client:
        client.wait_until_ready()
        assert client.health() is ServingStatus.SERVING
        assert client.get_model().id == client.rerank("q", ["a"]).model == "my-model"
        assert client.rerank("q", ["a"] * 1000).usage.computed_pairs == 1000


async def test_the_asynchronous_fake_does_the_same() -> None:
    """The asynchronous fake has the same behaviour, awaited."""

    async def source() -> AsyncIterator[Query[int, str]]:
        for number in range(3):
            yield Query(number, "q", ["a"])

    async with AsyncFakeRerankClient(lambda query, text: 1.0) as client:
        await client.wait_until_ready()
        assert (await client.get_model()).id == "fake"
        assert (await client.rerank("q", ["a"]))[0].score == 1.0
        assert [id async for id, _ in client.rerank_many(source())] == [0, 1, 2]
        assert [id async for id, _ in client.rerank_many([Query(9, "q", ["a"])])] == [9]
        assert len(client.calls) == 5
