"""Questions whose right answers are known beforehand.

The simulated model is deterministic, so what a fleet answers through all of its layers
can be compared with what the model says here, score by score.
"""

import random
from dataclasses import dataclass

from rerank import Ranking

from server.config import SimulatedModelSettings
from server.models.base import Windowing
from server.models.simulated import SimulatedModel
from server.reranker import sigmoid

__all__ = ["MAX_TOKENS", "Question", "make_questions"]

MAX_TOKENS = 512
"""`--max-tokens` of the servers under test."""
SCORE_TOLERANCE = 1e-6
_WORDS = """
river mountain city music engine winter market garden letter window planet forest bridge coffee
science history island captain summer thunder paper silver ocean village doctor candle pepper
"""
_SPEED_TOKENS_PER_S = 1e12


@dataclass(frozen=True, slots=True)
class Question:
    """A query, its documents, and what every server must answer."""

    query: str
    documents: tuple[str, ...]
    order: tuple[int, ...]
    scores: tuple[float, ...]

    def is_answered_by(self, ranking: Ranking[str]) -> bool:
        """Whether the ranking is right: order, documents and scores."""
        return (
            tuple(ranked.index for ranked in ranking) == self.order
            and all(ranked.document == self.documents[ranked.index] for ranked in ranking)
            and all(
                abs(ranked.score - expected) <= SCORE_TOLERANCE
                for ranked, expected in zip(ranking, self.scores, strict=True)
            )
        )


def make_questions(count: int, *, documents: tuple[int, int] = (4, 12), seed: int = 1) -> list[Question]:
    """Questions of different sizes, the same for the same seed; about 20 tokens a document."""
    chance = random.Random(seed)
    model = SimulatedModel(
        SimulatedModelSettings(tokens_per_second=_SPEED_TOKENS_PER_S, startup_s=0, max_tokens=MAX_TOKENS)
    )
    return [_question(model, chance, chance.randint(*documents)) for _ in range(count)]


def _question(model: SimulatedModel, chance: random.Random, size: int) -> Question:
    vocabulary = _WORDS.split()
    query = " ".join(chance.sample(vocabulary, 4))
    documents = tuple(" ".join(chance.choices(vocabulary, k=chance.randint(8, 18))) for _ in range(size))
    encoded = model.encode_documents(model.encode_query(query), documents, Windowing())
    logits = [float(logit) for logit in model.submit([each.pairs[0] for each in encoded]).wait()]
    order = sorted(range(size), key=lambda index: -logits[index])
    return Question(query, documents, tuple(order), tuple(sigmoid(logits[index]) for index in order))
