"""Attention over a packed row equals attention over each sequence by itself."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from server.models import attention, cpu_attention
from server.models.attention import Packing, attend


def naive(query: Tensor, key: Tensor, value: Tensor, causal: bool, window: int | None) -> Tensor:
    """One sequence, [heads, tokens, width], by the definition."""
    groups = query.shape[0] // key.shape[0]
    key, value = key.repeat_interleave(groups, 0), value.repeat_interleave(groups, 0)
    scores = query @ key.transpose(1, 2) / query.shape[2] ** 0.5
    distance = torch.arange(query.shape[1])[:, None] - torch.arange(query.shape[1])[None, :]
    hidden = torch.zeros_like(distance, dtype=torch.bool)
    if causal:
        hidden |= distance < 0
    if window is not None:
        hidden |= distance.abs() >= window
    return torch.softmax(scores.masked_fill(hidden, float("-inf")), -1) @ value


def packing(lengths: list[int], causal: bool, device: str = "cpu") -> Packing:
    bounds = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return Packing(lengths=lengths, bounds=bounds.to(device), causal=causal)


def expected(
    query: Tensor, key: Tensor, value: Tensor, lengths: list[int], causal: bool, window: int | None
) -> Tensor:
    parts = zip(*(torch.split(t[0], lengths, dim=1) for t in (query, key, value)), strict=True)
    return torch.cat([naive(q, k, v, causal, window) for q, k, v in parts], dim=1).transpose(0, 1)


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    causal=st.booleans(),
    window=st.none() | st.integers(1, 20),
    groups=st.sampled_from([1, 2]),
    block=st.sampled_from([5, 256]),
)
@settings(max_examples=80, deadline=None)
def test_sequences_do_not_see_each_other(
    lengths: list[int], causal: bool, window: int | None, groups: int, block: int
) -> None:
    """Any lengths, causal or not, with a window or without, with shared key heads or own ones."""
    torch.manual_seed(sum(lengths))
    tokens = sum(lengths)
    query = torch.randn(1, 4, tokens, 8)
    key, value = torch.randn(2, 1, 4 // groups, tokens, 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "_LOCAL_BLOCK", block)
        found = attend(query, key, value, packing(lengths, causal), None, window)
    assert found.shape == (1, tokens, 4, 8)
    torch.testing.assert_close(
        found[0], expected(query, key, value, lengths, causal, window), atol=1e-5, rtol=1e-5
    )


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6), groups=st.sampled_from([1, 2]))
@settings(max_examples=30, deadline=None)
def test_one_token_of_each_sequence_sees_all_of_it(lengths: list[int], groups: int) -> None:
    """As the last layer asks, whose other tokens nobody reads."""
    torch.manual_seed(sum(lengths))
    query = torch.randn(1, 4, sum(lengths), 8)
    key, value = torch.randn(2, 1, 4 // groups, sum(lengths), 8)
    packed = packing(lengths, causal=False)
    first = packed.bounds[:-1]
    found = attend(query.index_select(2, first), key, value, packed, None, None)
    wanted = expected(query, key, value, lengths, False, None).index_select(0, first)
    torch.testing.assert_close(found[0], wanted, atol=1e-5, rtol=1e-5)


@given(
    lengths=st.lists(st.integers(1, 230), min_size=1, max_size=5),
    heads=st.sampled_from([3, 5]),
    scores=st.sampled_from([2_000_000, 60_000, 1]),
)
@settings(max_examples=60, deadline=None)
def test_products_of_padded_sizes(lengths: list[int], heads: int, scores: int) -> None:
    """oneDNN's products, on sizes rounded up, give each sequence its own attention."""
    torch.manual_seed(sum(lengths))
    query, key, value = torch.randn(3, 1, heads, sum(lengths), 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "onednn_products_pay", lambda: True)
        patch.setattr(cpu_attention, "_SHORTEST", 20)
        patch.setattr(cpu_attention, "_SCORES", scores)
        cpu_attention._layout.cache_clear()
        found = attend(query, key, value, packing(lengths, False), None, None)
    cpu_attention._layout.cache_clear()
    wanted = expected(query, key, value, lengths, False, None)
    torch.testing.assert_close(found[0], wanted, atol=1e-5, rtol=1e-5)


def test_a_broken_neighbour_stays_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not-a-number in one sequence does not reach the next."""
    monkeypatch.setattr(attention, "onednn_products_pay", lambda: True)
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 4, 330, 8)
    for states in (query, key, value):
        states[:, :, 110:210] = torch.nan
    found = attend(query, key, value, packing([110, 100, 120], False), None, None)[0]
    assert not found[:110].isnan().any()
    assert found[110:210].isnan().all()
    assert not found[210:].isnan().any()


def test_neighbours_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies beside a sequence, and where in the row it lies, is not in its result."""
    monkeypatch.setattr(attention, "onednn_products_pay", lambda: True)
    torch.manual_seed(0)
    own = torch.randn(3, 1, 4, 110, 32)

    def result(before: int, after: int) -> torch.Tensor:
        parts = [torch.randn(3, 1, 4, before, 32), own, torch.randn(3, 1, 4, after, 32)]
        query, key, value = torch.cat(parts, dim=3)
        lengths = [length for length in (before, 110, after) if length]
        return attend(query, key, value, packing(lengths, False), None, None)[0, before : before + 110]

    alone = result(0, 0)
    for before, after in [(0, 120), (7, 0), (130, 3), (97, 98)]:
        assert torch.equal(result(before, after), alone)


def test_unknown_terms_are_refused() -> None:
    """Soft capping and other terms that packed attention does not know are errors, not silence."""
    states = torch.randn(1, 2, 4, 8)
    with pytest.raises(NotImplementedError, match="softcap"):
        attention._transformers_attention(
            torch.nn.Identity(),
            states,
            states,
            states,
            None,
            rerank_packing=packing([4], False),
            softcap=30.0,
        )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize("operator", [False, True])
def test_kernel_on_cuda(
    dtype: torch.dtype, causal: bool, window: int | None, operator: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variable-length kernel, public or underneath, computes the same in 16 bits."""
    torch.manual_seed(0)
    lengths = [1, 70, 33, 128]
    query = torch.randn(1, 4, sum(lengths), 32, dtype=dtype, device="cuda")
    key, value = torch.randn(2, 1, 2, sum(lengths), 32, dtype=dtype, device="cuda")
    if operator:
        monkeypatch.setattr(attention, "_varlen", lambda: attention._flash_operator)
    found = attend(query, key, value, packing(lengths, causal, "cuda"), None, window)
    reference = expected(query.float().cpu(), key.float().cpu(), value.float().cpu(), lengths, causal, window)
    torch.testing.assert_close(found[0].float().cpu(), reference, atol=2e-2, rtol=2e-2)
