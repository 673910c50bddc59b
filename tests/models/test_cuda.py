"""The same code on a GPU: half precision, packed by one kernel, while the host goes on."""

from pathlib import Path

import numpy as np
import pytest
import torch

from server.models.base import EncodedPair, Model, Windowing
from server.models.torch_model import load_torch
from tests.models.checkpoints import PACKED, PADDED
from tests.models.texts import docstrings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def encode(model: Model, count: int = 40) -> list[EncodedPair]:
    query = model.encode_query("sort a list")
    texts = [body[: 20 + 9 * index] for index, (_, body) in enumerate(docstrings()[:count])]
    return [pair for found in model.encode_documents(query, texts, Windowing()) for pair in found.pairs]


@pytest.mark.parametrize("name", [*PACKED, *PADDED])
def test_half_precision_is_near_float32_on_the_cpu(name: str, tmp_path: Path) -> None:
    """Every family gives on CUDA, in its automatic precision, the CPU's ranking up to rounding."""
    folder = {**PACKED, **PADDED}[name](tmp_path)
    exact, fast = load_torch(str(folder), device="cpu"), load_torch(str(folder), device="cuda:0")
    assert fast.info.execution.startswith(f"torch {'packed' if name in PACKED else 'padded'} ")
    assert fast.info.overlaps
    pairs = encode(exact)
    found, wanted = fast.submit(pairs).wait(), exact.submit(pairs).wait()
    assert np.isfinite(found).all()
    assert np.corrcoef(found, wanted)[0, 1] > 0.98


@pytest.mark.parametrize("name", ["bert", "xlm-roberta", "modernbert-cls", "qwen3", "deberta-v3"])
def test_float32_equals_the_cpu(name: str, tmp_path: Path) -> None:
    """In float32 the GPU gives the CPU's logits to 1e-3."""
    folder = PACKED[name](tmp_path)
    exact = load_torch(str(folder), device="cpu")
    there = load_torch(str(folder), device="cuda", dtype="float32")
    pairs = encode(exact)
    np.testing.assert_allclose(there.submit(pairs).wait(), exact.submit(pairs).wait(), atol=1e-3)


def test_batches_may_wait_for_each_other(tmp_path: Path) -> None:
    """Many batches submitted before any is waited for do not overwrite each other's memory."""
    model = load_torch(str(PACKED["bert"](tmp_path)), device="cuda")
    pairs = encode(model)
    one_by_one = [model.submit([pair]).wait()[0] for pair in pairs]
    pending = [model.submit([pair]) for pair in pairs]
    np.testing.assert_allclose([logits.wait()[0] for logits in pending], one_by_one, atol=1e-3)
