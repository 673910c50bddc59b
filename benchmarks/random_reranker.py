"""A cross-encoder in the shape of bge-reranker-v2-m3 with random weights, and texts of exact length for it.

Speed does not depend on what the weights are, so a GPU without a network can be measured.
The tokenizer knows words `w0`, `w1`, ... and each is one token.
"""

import random
from collections.abc import Sequence
from pathlib import Path

from benchmarks.workload import Request

__all__ = ["FULL", "TINY", "RandomShape", "requests_of_mixed_length", "write_random_reranker"]

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
# Of a pair: <s> query </s></s> document </s>.
TEMPLATE_TOKENS = 4
WORDS = 900
QUERY_TOKENS = (6, 24)
# Freshly initialised networks hardly look at their input. With weights this much larger than what
# keeps a signal's size, scores differ from text to text, and errors would be seen.
GAIN = 1.5


class RandomShape:
    """The numbers of an XLM-RoBERTa."""

    def __init__(
        self, *, vocabulary: int, hidden: int, layers: int, heads: int, inner: int, positions: int
    ) -> None:
        self.config = {
            "vocab_size": vocabulary,
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "intermediate_size": inner,
            "max_position_embeddings": positions,
            "type_vocab_size": 1,
            "num_labels": 1,
            "layer_norm_eps": 1e-5,
            "initializer_range": GAIN * hidden**-0.5,
            "bos_token_id": 0,
            "pad_token_id": 1,
            "eos_token_id": 2,
        }
        # XLM-R counts positions from pad_token_id + 1.
        self.max_tokens = positions - 2


FULL = RandomShape(vocabulary=250_002, hidden=1024, layers=24, heads=16, inner=4096, positions=8194)
TINY = RandomShape(vocabulary=1_000, hidden=64, layers=2, heads=4, inner=128, positions=514)


def write_random_reranker(folder: Path, shape: RandomShape, dtype_name: str) -> None:
    """Write a checkpoint folder that `CrossEncoder` loads like any other."""
    import torch
    from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification

    torch.manual_seed(0)
    network = XLMRobertaForSequenceClassification(XLMRobertaConfig(**shape.config)).eval()
    network.to(getattr(torch, dtype_name)).save_pretrained(folder)
    _write_tokenizer(folder, shape)


def _write_tokenizer(folder: Path, shape: RandomShape) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate(SPECIAL_TOKENS)}
    vocabulary |= {f"w{word}": len(SPECIAL_TOKENS) + word for word in range(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", vocabulary["<s>"]), ("</s>", vocabulary["</s>"])],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=shape.max_tokens,
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(folder)


def requests_of_mixed_length(
    requests: int, documents: int, pair_tokens: tuple[int, int]
) -> tuple[list[Request], Sequence[int]]:
    """Requests whose pairs have lengths spread evenly over the octaves of the range, and those lengths."""
    chance = random.Random(0)
    shortest, longest = pair_tokens
    made: list[Request] = []
    lengths: list[int] = []
    for _ in range(requests):
        query_tokens = chance.randint(*QUERY_TOKENS)
        texts = []
        for _ in range(documents):
            wanted = round(shortest * (longest / shortest) ** chance.random())
            document_tokens = max(1, wanted - query_tokens - TEMPLATE_TOKENS)
            texts.append(_words(chance, document_tokens))
            lengths.append(query_tokens + document_tokens + TEMPLATE_TOKENS)
        made.append(Request(_words(chance, query_tokens), tuple(texts)))
    return made, lengths


def _words(chance: random.Random, count: int) -> str:
    return " ".join(f"w{chance.randrange(WORDS)}" for _ in range(count))
