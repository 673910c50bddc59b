"""How pairs become one row, and groups of similar length."""

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from server.models.base import EncodedPair, Windowing
from server.models.packed import assemble
from server.models.padded import by_length
from server.models.torch_model import load_torch
from tests.models.checkpoints import PADDED
from tests.models.texts import docstrings

pair = st.builds(
    lambda ids, share: EncodedPair.of(np.array(ids, dtype=np.int32), int(share * len(ids))),
    st.lists(st.integers(0, 9), min_size=1, max_size=20),
    st.floats(0, 1),
)


@given(pairs=st.lists(pair, min_size=1, max_size=8), segments=st.booleans(), padding=st.none() | st.just(0))
def test_row(pairs: list[EncodedPair], segments: bool, padding: int | None) -> None:
    """Ids, positions, segments, bounds and last tokens lie one after another, pair by pair."""
    array = assemble(pairs, segments=segments, padding_id=padding)
    tokens, count = sum(p.tokens for p in pairs), len(pairs)
    ids, positions, types = array[: 3 * tokens].reshape(3, tokens)
    bounds, last = array[3 * tokens : 3 * tokens + count + 1], array[3 * tokens + count + 1 :]
    assert bounds.tolist() == [0, *np.cumsum([p.tokens for p in pairs])]
    for index, p in enumerate(pairs):
        here = slice(bounds[index], bounds[index + 1])
        np.testing.assert_array_equal(ids[here], p.token_ids)
        np.testing.assert_array_equal(positions[here], np.arange(p.tokens))
        document = np.arange(p.tokens) >= p.document_start
        np.testing.assert_array_equal(types[here], document if segments else np.zeros(p.tokens))
        real = [i for i, token in enumerate(p.token_ids) if token != padding] or [0]
        assert last[index] == bounds[index] + real[-1]


@given(lengths=st.lists(st.integers(1, 600), max_size=60))
def test_groups_waste_little(lengths: list[int]) -> None:
    """Every pair is in one group, and a group's longest is at most 15% or 16 tokens over its shortest."""
    groups = list(by_length(lengths))
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        shortest, longest = min(lengths[i] for i in group), max(lengths[i] for i in group)
        assert longest <= max(1.15 * shortest, shortest + 16)


def test_padded_logits_keep_the_order(tmp_path: Path) -> None:
    """However the pairs are grouped, logits come back in the order of the batch."""
    model = load_torch(str(PADDED["albert"](tmp_path)), device="cpu")
    query = model.encode_query("sort")
    texts = [body[: 400 // (1 + index % 7)] for index, (_, body) in enumerate(docstrings()[:20])]
    pairs = [found.pairs[0] for found in model.encode_documents(query, texts, Windowing())]
    alone = np.concatenate([model.submit([p]).wait() for p in pairs])
    np.testing.assert_allclose(model.submit(pairs).wait(), alone, atol=1e-4)
