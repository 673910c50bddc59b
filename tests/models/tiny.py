"""Tiny models with random weights and tiny tokenizers, written as checkpoints that CrossEncoder loads."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

TOKENIZERS = Path(__file__).parent / "tokenizers"
"""Made once by `tests.models.make_tokenizers`."""
VOCABULARY = 800

# As the Qwen3-Reranker checkpoints for sentence-transformers have it: roles query and document.
QWEN_TEMPLATE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the "
    'Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    "<Instruct>: {{ messages | selectattr('role', 'eq', 'system') | map(attribute='content') | first "
    "| default('Given a web search query, retrieve relevant passages that answer the query') }}\n"
    "<Query>: {{ messages | selectattr('role', 'eq', 'query') | map(attribute='content') | first }}\n"
    "<Document>: {{ messages | selectattr('role', 'eq', 'document') | map(attribute='content') | first }}"
    "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
)


@cache
def wordpiece() -> Tokenizer:
    """BERT's pipeline: normalizer, pre-tokenizer and template."""
    return _read("wordpiece")


@cache
def unigram() -> Tokenizer:
    """XLM-RoBERTa's pipeline: Unigram over Metaspace pieces, four special tokens around a pair."""
    return _read("unigram")


@cache
def bytelevel() -> Tokenizer:
    """Qwen's pipeline: byte-level BPE after a split by regular expression, nothing around a pair."""
    return _read("bytelevel")


def _read(name: str) -> Tokenizer:
    tokenizer: Tokenizer = Tokenizer.from_file(str(TOKENIZERS / f"{name}.json"))
    return tokenizer


def with_bos(tokenizer: Tokenizer, bos: str) -> Tokenizer:
    """Llama's and Gemma's template: a beginning-of-sequence token before each text."""
    clone = Tokenizer.from_str(tokenizer.to_str())
    identity = clone.token_to_id(bos)
    clone.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, identity)]
    )
    return clone


def fast(tokenizer: Tokenizer, limit: int, **names: Any) -> PreTrainedTokenizerFast:
    """Wrap a tokenizer for transformers."""
    clone = Tokenizer.from_str(tokenizer.to_str())
    return PreTrainedTokenizerFast(tokenizer_object=clone, model_max_length=limit, **names)


BERT_NAMES = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
ROBERTA_NAMES = {
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "cls_token": "<s>",
    "sep_token": "</s>",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "mask_token": "<mask>",
}
QWEN_NAMES = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"}

NO_SEGMENTS = ["input_ids", "attention_mask"]


def save(
    folder: Path, network_class: Any, config: Any, tokenizer: PreTrainedTokenizerFast, seed: int = 0
) -> Path:
    """Write a checkpoint with random weights, large enough that inputs move the logits."""
    torch.manual_seed(seed)
    network = network_class(config).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.35)
            elif "norm" not in name.lower():
                parameter.normal_(0.0, 0.1)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
