"""What a type checker makes of the public API; mypy reads the lines that pytest runs."""

from dataclasses import dataclass
from typing import assert_type

from rerank import (
    AsyncFakeRerankClient,
    FakeRerankClient,
    ModelInfo,
    Query,
    RankedDocument,
    Ranking,
    RerankError,
)


@dataclass(frozen=True)
class Article:
    body: str


ARTICLES = [Article("a"), Article("b")]


def body(article: Article) -> str:
    return article.body


def test_rankings_know_the_type_of_their_documents() -> None:
    """Strings give a Ranking[str], articles a Ranking[Article], and nothing is Any."""
    client = FakeRerankClient()
    assert_type(client.rerank("query", ["a"]), Ranking[str])
    ranking = client.rerank("query", ARTICLES, text=body)
    assert_type(ranking, Ranking[Article])
    assert_type(ranking[0], RankedDocument[Article])
    assert_type(ranking[:1], tuple[RankedDocument[Article], ...])
    assert_type(ranking.documents, tuple[Article, ...])
    assert_type(ranking[0].document.body, str)
    assert_type(client.get_model(), ModelInfo)
    # A lambda needs no annotation: its argument is known to be an article.
    assert_type(client.rerank("query", ARTICLES, text=lambda article: article.body), Ranking[Article])


def test_streams_know_the_types_of_ids_and_documents() -> None:
    """rerank_many yields the caller's kind of id with a ranking or an error."""
    client = FakeRerankClient()
    for id, outcome in client.rerank_many([Query(1, "query", ARTICLES)], text=body):
        assert_type(id, int)
        assert_type(outcome, Ranking[Article] | RerankError)
        if not isinstance(outcome, RerankError):
            assert_type(outcome[0].document, Article)


async def test_the_twin_has_the_same_types() -> None:
    """Awaited results have the types of the blocking client's."""
    client = AsyncFakeRerankClient()
    assert_type(await client.rerank("query", ARTICLES, text=body), Ranking[Article])
    async for id, outcome in client.rerank_many([Query("a", "query", ["b"])]):
        assert_type(id, str)
        assert_type(outcome, Ranking[str] | RerankError)
