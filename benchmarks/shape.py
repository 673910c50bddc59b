"""How much arithmetic a pair is: read from a checkpoint's config.json, counted for real tokens only."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from benchmarks.workload import Request

__all__ = ["EncoderShape", "token_counts"]


@dataclass(frozen=True, slots=True)
class EncoderShape:
    """A BERT-like encoder with one output."""

    hidden: int
    inner: int
    layers: int
    max_tokens: int

    @classmethod
    def of_checkpoint(cls, folder: Path) -> Self:
        """Read config.json."""
        config = json.loads((folder / "config.json").read_text())
        return cls(
            hidden=config["hidden_size"],
            inner=config["intermediate_size"],
            layers=config["num_hidden_layers"],
            max_tokens=config["max_position_embeddings"],
        )

    def pair_flops(self, tokens: int) -> int:
        """Multiplications and additions in the matrix products of one pair, without any padding."""
        projections = 4 * 2 * tokens * self.hidden * self.hidden
        attention = 2 * 2 * tokens * tokens * self.hidden
        feed_forward = 2 * 2 * tokens * self.hidden * self.inner
        head = 2 * self.hidden * (self.hidden + 1)
        return self.layers * (projections + attention + feed_forward) + head

    def linear_layers(self) -> list[tuple[int, int]]:
        """The distinct (inputs, outputs) of its linear layers."""
        return [(self.hidden, self.hidden), (self.hidden, self.inner), (self.inner, self.hidden)]


def token_counts(folder: Path, requests: Sequence[Request], max_tokens: int) -> list[int]:
    """Tokens of each pair as the model reads it, special tokens included."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(max_tokens, strategy="only_second")
    pairs = [pair for request in requests for pair in request.pairs]
    return [len(encoding.ids) for encoding in tokenizer.encode_batch(pairs)]
