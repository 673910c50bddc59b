"""Padded execution, for networks that can't run packed: pairs of similar length together."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from server.models.base import EncodedPair

__all__ = ["PaddedExecutor", "by_length"]

_WASTE = 1.15
"""How much longer than its shortest pair a group's longest may be: at most 15% padding."""
_SHORT = 16
"""Tokens within which pairs always share a group, since many tiny groups cost more."""


class PaddedExecutor:
    """Runs whatever CrossEncoder loads, through its own modules."""

    name = "padded"

    def __init__(self, encoder: Any, device: torch.device, *, segments: bool, message: bool) -> None:
        self._encoder = encoder
        self._device = device
        self._segments = segments
        tokenizer = encoder.tokenizer
        self._padding_id = tokenizer.pad_token_id or 0
        self._pads_left = tokenizer.padding_side == "left"
        self._fixed: dict[str, Any] = {"modality": "message" if message else "text"}
        if getattr(encoder[0], "transformer_task", "") == "text-generation":
            self._fixed["logits_to_keep"] = 1

    def forward(self, pairs: Sequence[EncodedPair]) -> Tensor:
        """Logits, float32, shape [pairs, labels], in the order of the pairs."""
        scores: list[Tensor] = []
        order: list[int] = []
        for group in by_length([pair.tokens for pair in pairs]):
            features = self._features([pairs[index] for index in group])
            result = self._encoder(features)["scores"].float()
            scores.append(result.reshape(len(group), -1))
            order.extend(group)
        stacked = torch.cat(scores)
        result = torch.empty_like(stacked)
        result[torch.tensor(order, device=stacked.device)] = stacked
        return result

    def _features(self, pairs: Sequence[EncodedPair]) -> dict[str, Any]:
        width = max(pair.tokens for pair in pairs)
        ids = torch.full((len(pairs), width), self._padding_id, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        types = torch.zeros_like(ids)
        for row, pair in enumerate(pairs):
            start = width - pair.tokens if self._pads_left else 0
            end = start + pair.tokens
            ids[row, start:end] = torch.from_numpy(pair.token_ids)
            mask[row, start:end] = 1
            if self._segments:
                types[row, start + pair.document_start : end] = 1
        features = {"input_ids": ids, "attention_mask": mask}
        if self._segments:
            features["token_type_ids"] = types
        moved = {name: tensor.to(self._device, non_blocking=True) for name, tensor in features.items()}
        return {**moved, **self._fixed}


def by_length(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices in groups of similar length, shortest first."""
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if group and lengths[index] > max(lengths[group[0]] * _WASTE, lengths[group[0]] + _SHORT):
            yield group
            group = []
        group.append(index)
    if group:
        yield group
