"""Packed execution: a batch is one row without padding, whatever the lengths of its pairs."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from server.models.attention import Packing
from server.models.base import EncodedPair
from server.models.families import Family, PackedRow

__all__ = ["PackedExecutor", "assemble"]

_CPU_ROW_STEP = 32
"""Rows on the CPU are filled up to a multiple of this many tokens: oneDNN makes code for every new
size, half a millisecond for each kind of layer, and keeps only so many."""
_STAGING_BUFFERS = 3
"""One is being filled, one is being copied, one waits for its copy's end to be noticed."""


class PackedExecutor:
    """Runs a family's network on packed rows."""

    name = "packed"

    def __init__(self, family: Family, device: torch.device, *, segments: bool) -> None:
        self._family = family
        self._device = device
        self._segments = segments
        self._staging = [_Staging() for _ in range(_STAGING_BUFFERS)] if device.type == "cuda" else []
        self._next = 0

    def forward(self, pairs: Sequence[EncodedPair]) -> Tensor:
        """Logits, float32, shape [pairs, labels], on the device and on CUDA perhaps not done yet."""
        logits = self._forward(pairs if self._device.type == "cuda" else _filled(pairs))
        return logits[: len(pairs)]

    def _forward(self, pairs: Sequence[EncodedPair]) -> Tensor:
        lengths = [pair.tokens for pair in pairs]
        rows = assemble(pairs, segments=self._segments, padding_id=self._family.padding_id)
        tensor = self._to_device(rows)
        tokens, count = sum(lengths), len(lengths)
        per_token = tensor[: 3 * tokens].view(3, 1, tokens)
        packing = Packing(
            lengths=lengths,
            bounds=tensor[3 * tokens : 3 * tokens + count + 1],
            causal=self._family.causal,
        )
        row = PackedRow(
            token_ids=per_token[0],
            positions=per_token[1],
            segments=per_token[2],
            last=tensor[3 * tokens + count + 1 :],
            packing=packing,
        )
        return self._family.logits(row)

    def _to_device(self, array: NDArray[np.int32]) -> Tensor:
        if not self._staging:
            return torch.from_numpy(array)
        staging = self._staging[self._next]
        self._next = (self._next + 1) % len(self._staging)
        return staging.copy(array, self._device)


def _filled(pairs: Sequence[EncodedPair]) -> Sequence[EncodedPair]:
    """The pairs, and perhaps one more that makes the row a multiple of the step."""
    missing = -sum(pair.tokens for pair in pairs) % _CPU_ROW_STEP
    if not missing:
        return pairs
    ids = np.resize(pairs[0].token_ids, missing)
    return [*pairs, EncodedPair.of(ids, min(pairs[0].document_start, missing))]


class _Staging:
    """Page-locked memory, from which the device copies while the host goes on."""

    def __init__(self) -> None:
        self._memory: Tensor | None = None
        self._copied: torch.cuda.Event | None = None

    def copy(self, array: NDArray[np.int32], device: torch.device) -> Tensor:
        if self._copied is not None:
            self._copied.synchronize()  # the last copy out of this memory must be over
        if self._memory is None or len(self._memory) < len(array):
            self._memory = torch.empty(2 * len(array), dtype=torch.int32, pin_memory=True)
        view = self._memory[: len(array)]
        view.numpy()[:] = array
        result = view.to(device, non_blocking=True)
        self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._copied.record(torch.cuda.current_stream(device))
        return result


def assemble(
    pairs: Sequence[EncodedPair], *, segments: bool, padding_id: int | None = None
) -> NDArray[np.int32]:
    """Everything that the device needs of a batch, in one array for one copy.

    Returns:
        int32, concatenated: token ids, positions and segments [tokens] each, bounds
        [pairs + 1], and the index of each pair's last token that is not `padding_id` [pairs].
    """
    lengths = np.array([pair.tokens for pair in pairs], dtype=np.int32)
    bounds = np.zeros(len(pairs) + 1, dtype=np.int32)
    np.cumsum(lengths, out=bounds[1:])
    tokens = int(bounds[-1])
    array = np.empty(3 * tokens + 2 * len(pairs) + 1, dtype=np.int32)
    ids, positions, types = array[: 3 * tokens].reshape(3, tokens)
    np.concatenate([part for pair in pairs for part in pair.parts], out=ids)
    positions[:] = np.arange(tokens, dtype=np.int32)
    positions -= np.repeat(bounds[:-1], lengths)
    if segments:
        starts = np.array([pair.document_start for pair in pairs], dtype=np.int32)
        types[:] = positions >= np.repeat(starts, lengths)
    else:
        types[:] = 0
    array[3 * tokens : 3 * tokens + len(pairs) + 1] = bounds
    array[3 * tokens + len(pairs) + 1 :] = _last(pairs, bounds, padding_id)
    return array


def _last(
    pairs: Sequence[EncodedPair], bounds: NDArray[np.int32], padding_id: int | None
) -> NDArray[np.int32]:
    last = bounds[1:] - 1
    if padding_id is None:
        return last
    for index, pair in enumerate(pairs):
        ids = pair.token_ids
        if ids[-1] == padding_id:
            real = np.flatnonzero(ids != padding_id)
            # As transformers has it: the last of the real tokens, or the first if there is none.
            last[index] = bounds[index] + (real[-1] if len(real) else 0)
    return last
