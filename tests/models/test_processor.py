"""The kind of processor is read once, and decides what must be equal on equal machines."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from server.models import cpu_attention
from server.models import processor as module
from server.models.processor import Processor, kernels, processor

ZEN_5 = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 26
model name\t: AMD EPYC

processor\t: 1
cpu family\t: 1
"""


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    cpu_attention.onednn_products_pay.cache_clear()
    yield
    processor.cache_clear()
    cpu_attention.onednn_products_pay.cache_clear()


def described(text: str | None, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Processor:
    """What is read out of such a description."""
    path = folder / "cpuinfo"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(module, "_CPUINFO", path)
    processor.cache_clear()
    return processor()


def test_vendor_and_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are those of the first processor, and empty where nothing tells them."""
    assert described(None, tmp_path, monkeypatch) == ("", 0)
    assert described("Hardware : an arm", tmp_path, monkeypatch) == ("", 0)
    assert described(ZEN_5, tmp_path, monkeypatch) == ("AuthenticAMD", 26)
    assert "AuthenticAMD 26" in kernels()
    assert torch.__version__ in kernels()


@pytest.mark.parametrize("found", [("AuthenticAMD", 25), ("GenuineIntel", 6), ("", 0)])
def test_elsewhere_the_fused_kernel_stays(found: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Which kernel attends is no matter of timing: equal machines choose the same."""
    monkeypatch.setattr(cpu_attention, "processor", lambda: Processor(*found))
    assert not cpu_attention.onednn_products_pay()


def test_products_must_be_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where two products are faster, they are used unless they lose accuracy."""
    monkeypatch.setattr(cpu_attention, "processor", lambda: Processor("AuthenticAMD", 26))
    exact = not torch.cpu._is_amx_tile_supported()
    assert cpu_attention.onednn_products_pay() is exact
