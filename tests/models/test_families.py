"""Every family gives CrossEncoder's logits to 1e-4: in any company, cut at any limit."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder

from server.models.base import EncodedPair, Model, Windowing
from server.models.torch_model import load_torch
from tests.models.checkpoints import PACKED, PADDED
from tests.models.texts import MULTILINGUAL, docstrings

TOLERANCE = 1e-4


def texts() -> list[tuple[str, str]]:
    """Queries of a few words, since only a long one is treated unlike CrossEncoder does it."""
    rng = random.Random(7)
    queries = ["How?", "sort a list", "größer"]
    found = [(rng.choice(queries), document) for document in MULTILINGUAL]
    found += [(rng.choice(queries), body[: rng.randrange(1, 400)]) for _, body in docstrings()[:40]]
    rng.shuffle(found)
    return found


@pytest.fixture(scope="module", params=[*PACKED, *PADDED])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return {**PACKED, **PADDED}[name](tmp_path_factory.mktemp(name))


def predict(folder: Path, pairs: list[tuple[str, str]], max_length: int | None, **options: Any) -> Any:
    encoder = CrossEncoder(str(folder), device="cpu", max_length=max_length)
    return encoder.predict(pairs, activation_fn=torch.nn.Identity(), batch_size=8, **options)


def encode(model: Model, query: str, document: str, instruction: str = "") -> EncodedPair:
    (found,) = model.encode_documents(model.encode_query(query, instruction), [document], Windowing())
    return found.pairs[0]


def score(model: Model, pairs: list[EncodedPair], size: int, seed: int = 0) -> Any:
    order = list(range(len(pairs)))
    random.Random(seed).shuffle(order)
    logits = np.full(len(pairs), np.nan, dtype=np.float32)
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        logits[batch] = model.submit([pairs[index] for index in batch]).wait()
    return logits


def test_execution(name: str, folder: Path) -> None:
    """What the table in the docs says runs packed does, and all else runs padded."""
    execution = load_torch(str(folder), device="cpu").info.execution
    assert execution == f"torch {'packed' if name in PACKED else 'padded'} float32 cpu"


def test_equals_cross_encoder(name: str, folder: Path) -> None:
    """Logits equal CrossEncoder's, alone, in small batches and all at once."""
    model = load_torch(str(folder), device="cpu")
    pairs = texts()
    limit = model.info.max_tokens
    expected = predict(folder, pairs, limit)
    assert expected.std() > 0.01  # random weights, but not blind ones
    encoded = [encode(model, *pair) for pair in pairs]
    for size in (1, 5, len(pairs)):
        np.testing.assert_allclose(score(model, encoded, size), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("room", [9, 17])
def test_equals_cross_encoder_when_cut(name: str, folder: Path, room: int) -> None:
    """At small limits, where most documents are cut, logits still equal CrossEncoder's."""
    free = load_torch(str(folder), device="cpu")
    longest_query = max(free.encode_query(q).head.size + free.encode_query(q).tail.size for q, _ in texts())
    # A chat template's fixed text alone is longer than any small limit.
    limit = int(longest_query) + room if "yes-no" in name else 24 + room
    model = load_torch(str(folder), device="cpu", max_tokens=limit)
    pairs = texts()
    encoded = [encode(model, *pair) for pair in pairs]
    assert max(pair.tokens for pair in encoded) == limit
    np.testing.assert_allclose(
        score(model, encoded, 7), predict(folder, pairs, limit), atol=TOLERANCE, rtol=0
    )
