"""Logits of the embedded cross-encoder are CrossEncoder's, to 1e-4, in any company."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from server.models.base import EncodedPair, Model, Windowing
from server.models.embedded import EMBEDDED_MODEL_ID, materialise
from server.models.torch_model import load_torch
from tests.models.texts import pairs as text_pairs

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def model() -> Model:
    return load_torch(EMBEDDED_MODEL_ID, device="cpu")


@pytest.fixture(scope="module")
def texts() -> list[tuple[str, str]]:
    return text_pairs(210)


@pytest.fixture(scope="module")
def expected(texts: list[tuple[str, str]]) -> Any:
    from sentence_transformers import CrossEncoder

    return CrossEncoder(str(materialise()), device="cpu").predict(texts, batch_size=16)


@pytest.fixture(scope="module")
def encoded(model: Model, texts: list[tuple[str, str]]) -> list[EncodedPair]:
    return [encode(model, query, document) for query, document in texts]


def encode(model: Model, query: str, document: str) -> EncodedPair:
    (found,) = model.encode_documents(model.encode_query(query), [document], Windowing())
    (pair,) = found.pairs
    return pair


def score(model: Model, pairs: Sequence[EncodedPair], batches: Sequence[Sequence[int]]) -> Any:
    logits = np.full(len(pairs), np.nan, dtype=np.float32)
    for batch in batches:
        logits[list(batch)] = model.submit([pairs[i] for i in batch]).wait()
    return logits


def random_batches(count: int, seed: int, largest: int = 12) -> list[list[int]]:
    rng = random.Random(seed)
    order = list(range(count))
    rng.shuffle(order)
    batches = []
    while order:
        size = rng.randint(1, largest)
        batches.append(order[:size])
        order = order[size:]
    return batches


def test_runs_packed(model: Model) -> None:
    """The embedded model is a BERT, which runs packed."""
    assert model.info.execution == "torch packed float32 cpu"
    assert model.info.architecture == "BertForSequenceClassification"
    assert model.info.max_tokens == 512


def test_equals_cross_encoder(model: Model, encoded: list[EncodedPair], expected: Any) -> None:
    """Over two hundred pairs of varied length, cut ones among them, get CrossEncoder's logits."""
    assert sum(pair.tokens == 512 for pair in encoded) >= 10
    assert min(pair.tokens for pair in encoded) < 30
    logits = score(model, encoded, random_batches(len(encoded), seed=1))
    np.testing.assert_allclose(logits, expected, atol=TOLERANCE, rtol=0)


def test_company_does_not_matter(model: Model, encoded: list[EncodedPair], expected: Any) -> None:
    """A pair's logit is the same alone, with a few others, and in a batch of many."""
    some = list(range(0, len(encoded), 5))
    for batches in ([[i] for i in some], [some], [list(reversed(some))]):
        logits = score(model, encoded, batches)
        np.testing.assert_allclose(logits[some], expected[some], atol=TOLERANCE, rtol=0)


def test_empty_batch(model: Model) -> None:
    """No pairs give no logits."""
    assert model.submit([]).wait().shape == (0,)
