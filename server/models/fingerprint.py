"""A name for what a model computes: equal for two servers exactly when their logits are."""

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["digest_of_weights", "fingerprint"]

_SAMPLES = 65536
"""Elements read of a larger tensor: spread evenly, so that every fine-tuning shows."""


def digest_of_weights(network: Any) -> str:
    """A digest of a network's weights, 32 hexadecimal digits.

    Names, shapes and precisions count in full. So do the elements of tensors with up to
    65,536 of them; of larger ones about that many, evenly spread, are read. Training moves all
    elements of a tensor that it moves at all, so this tells checkpoints apart; it is no proof
    against an edit made to deceive it. It takes 0.1 s for 33 million parameters, where
    reading them all would take seconds for the larger models.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(_sampled(tensor))
    return digest.hexdigest()


def _sampled(tensor: Tensor) -> bytes:
    flat = tensor.detach().reshape(-1)
    if flat.numel() > _SAMPLES:
        flat = flat[:: flat.numel() // _SAMPLES]
    # bytes and not numbers: numpy has no bfloat16
    return flat.contiguous().cpu().view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def fingerprint(parts: Iterable[str]) -> str:
    """One digest of several texts; each is counted with its length, so that none can run into the next."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.hexdigest()
