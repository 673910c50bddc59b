"""The last layer for first tokens alone: the whole layer's output there, both ways of computing it."""

import copy

import pytest
import torch
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLayer

from server.models.attention import ATTENTION_NAME, Packing, register
from server.models.families.first_token import FirstTokenLayer

LENGTHS = [7, 1, 40, 3]
WIDTH = 48


@pytest.mark.parametrize("absorb", [True, False], ids=["absorbed", "projected"])
def test_it_gives_what_the_whole_layer_gives_at_first_tokens(absorb: bool) -> None:
    """With weights far larger than those of a fresh layer, so that attention is far from even."""
    torch.manual_seed(3)
    register()
    config = BertConfig(hidden_size=WIDTH, num_attention_heads=4, intermediate_size=64)
    config._attn_implementation = ATTENTION_NAME
    whole = BertLayer(config).eval()
    with torch.inference_mode():
        for parameter in whole.parameters():
            parameter.normal_(std=0.5)
        bounds = torch.tensor([0, *LENGTHS]).cumsum(0).to(torch.int32)
        packing = Packing(lengths=LENGTHS, bounds=bounds, causal=False)
        hidden = torch.randn(1, sum(LENGTHS), WIDTH)
        expected = whole(hidden, rerank_packing=packing)
        expected = expected[0] if isinstance(expected, tuple) else expected
        layer = FirstTokenLayer(copy.deepcopy(whole), absorb=absorb)
        found = layer(hidden, rerank_packing=packing)
    torch.testing.assert_close(found, expected[:, bounds[:-1].long()], atol=1e-4, rtol=1e-5)
    # What is absorbed is not kept twice.
    assert hasattr(layer.attention.self, "key") is not absorb
