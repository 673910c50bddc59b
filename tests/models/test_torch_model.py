"""Loading and failing: one clear line at start-up, and errors that the engine can act on."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from server.errors import ConfigurationError
from server.models import checkpoint
from server.models.base import DeviceLost, DeviceOutOfMemory, EncodedPair, Model, Windowing
from server.models.checkpoint import Source, load_cross_encoder
from server.models.devices import resolve_device, resolve_dtype
from server.models.torch_model import TorchModel, load_torch
from tests.models import tiny
from tests.models.checkpoints import PACKED, POSITIONS, SMALL

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return PACKED["bert"](tmp_path_factory.mktemp("bert"))


def pairs(model: Model, count: int = 3) -> list[EncodedPair]:
    found = model.encode_documents(
        model.encode_query("sort"), ["a list " * n for n in range(count)], Windowing()
    )
    return [pair for document in found for pair in document.pairs]


def failing(folder: Path, fail: Callable[[Sequence[EncodedPair]], None]) -> TorchModel:
    source = Source("tiny", str(folder), None, local_only=True)
    encoder = load_cross_encoder(source, CPU, torch.float32, trust_remote_code=False)
    return TorchModel(encoder, source, CPU, torch.float32, before_forward=fail)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
        MemoryError(),
    ],
)
def test_out_of_memory_leaves_a_usable_model(bert: Path, error: Exception) -> None:
    """Whatever it is called, a lack of memory is DeviceOutOfMemory, and a smaller batch still works."""

    def fail(batch: Sequence[EncodedPair]) -> None:
        if len(batch) > 1:
            raise error

    model = failing(bert, fail)
    batch = pairs(model)
    with pytest.raises(DeviceOutOfMemory):
        model.submit(batch)
    assert model.submit(batch[:1]).wait().shape == (1,)


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: an illegal memory access was encountered\nmore",
        "CUDA error: device-side assert triggered",
    ],
)
def test_a_dead_device_is_lost(bert: Path, message: str) -> None:
    """CUDA's errors are DeviceLost, in one line."""

    def fail(batch: Sequence[EncodedPair]) -> None:
        raise RuntimeError(message)

    model = failing(bert, fail)
    with pytest.raises(DeviceLost) as caught:
        model.submit(pairs(model))
    assert "\n" not in str(caught.value)


def test_other_errors_stay_what_they_are(bert: Path) -> None:
    """A failure that is neither memory nor device reaches the engine unchanged."""

    def fail(batch: Sequence[EncodedPair]) -> None:
        raise ValueError("a bug")

    model = failing(bert, fail)
    with pytest.raises(ValueError, match="a bug"):
        model.submit(pairs(model))


def test_close_is_final(bert: Path) -> None:
    """A closed model scores nothing any more."""
    model = load_torch(str(bert), device="cpu")
    batch = pairs(model)
    model.close()
    with pytest.raises(ValueError, match="closed"):
        model.submit(batch)


def test_fingerprint_is_of_content(bert: Path, tmp_path: Path) -> None:
    """The same files anywhere have one fingerprint; other weights, limits or precisions have others."""
    same = PACKED["bert"](tmp_path / "elsewhere")
    first = load_torch(str(bert), device="cpu").info
    again = load_torch(str(same), device="cpu").info
    assert again.fingerprint == first.fingerprint
    assert again.revision == first.revision
    assert first.revision.startswith("local-")
    assert first.model_id == bert.name
    shorter = load_torch(str(bert), device="cpu", max_tokens=32).info
    coarser = load_torch(str(bert), device="cpu", dtype="bfloat16").info
    config = transformers.BertConfig(**SMALL)
    tokenizer = tiny.fast(tiny.wordpiece(), POSITIONS, **tiny.BERT_NAMES)
    other = tiny.save(
        tmp_path / "other", transformers.BertForSequenceClassification, config, tokenizer, seed=1
    )
    different = load_torch(str(other), device="cpu").info
    assert len({info.fingerprint for info in (first, shorter, coarser, different)}) == 4


def test_half_precision_on_the_cpu_is_close(bert: Path) -> None:
    """bfloat16 gives the same ranking to its own accuracy."""
    exact = load_torch(str(bert), device="cpu")
    coarse = load_torch(str(bert), device="cpu", dtype="bfloat16")
    assert coarse.info.execution == "torch packed bfloat16 cpu"
    batch = pairs(exact, 8)
    np.testing.assert_allclose(coarse.submit(batch).wait(), exact.submit(batch).wait(), atol=0.3)


def test_limit_leaves_out_positions_that_do_not_exist(tmp_path: Path) -> None:
    """RoBERTa's table has two positions that are never used; BERT's has none."""
    assert (
        load_torch(str(PACKED["xlm-roberta"](tmp_path / "x")), device="cpu").info.max_tokens == POSITIONS - 2
    )
    assert load_torch(str(PACKED["bert"](tmp_path / "b")), device="cpu").info.max_tokens == POSITIONS
    assert load_torch(str(tmp_path / "b"), device="cpu", max_tokens=40).info.max_tokens == 40


def test_threads_are_set(bert: Path) -> None:
    """The thread option is torch's thread count."""
    before = torch.get_num_threads()
    try:
        load_torch(str(bert), device="cpu", threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_mismatch_falls_back_to_padding(
    bert: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If packed logits were wrong, the model would run padded and say so, with right logits."""
    from server.models.families.bert import Bert

    expected = load_torch(str(bert), device="cpu")
    batch = pairs(expected)
    right = Bert.logits
    monkeypatch.setattr(Bert, "logits", lambda self, row: right(self, row) + 1.0)
    with caplog.at_level("WARNING"):
        model = load_torch(str(bert), device="cpu")
    assert model.info.execution == "torch padded float32 cpu"
    assert "packed logits differ" in caplog.text
    monkeypatch.undo()
    np.testing.assert_allclose(model.submit(batch).wait(), expected.submit(batch).wait(), atol=1e-4)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"device": "cuda:99"}, "--device cuda:99: .*(no CUDA device is visible|CUDA device)"),
        ({"device": "tpu"}, "--device tpu: use cpu, cuda, cuda:N or auto"),
        ({"device": "cuda:x"}, "--device cuda:x: use"),
        ({"dtype": "float8"}, "--dtype float8: use auto"),
        ({"max_tokens": 3}, "--max-tokens 3: the model's template alone needs more"),
    ],
)
def test_wrong_options_are_one_line(bert: Path, option: dict[str, str], message: str) -> None:
    """An option that can't be used is named, with what can."""
    with pytest.raises(ConfigurationError, match=message) as caught:
        load_torch(str(bert), **{"device": "cpu", **option})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_auto_precision() -> None:
    """Auto is float32 on the CPU; on CUDA float16 for encoders and bfloat16 for decoders."""
    assert resolve_dtype("auto", CPU, "bert") is torch.float32
    assert resolve_dtype("auto", torch.device("cuda"), "xlm-roberta") is torch.float16
    assert resolve_dtype("auto", torch.device("cuda"), "qwen3") is torch.bfloat16
    assert resolve_device("auto").type in ("cpu", "cuda")


@pytest.mark.parametrize("model", ["./nowhere", "/nowhere/at/all", "a/b/c"])
def test_a_missing_folder_is_said(model: str) -> None:
    """A path that does not exist is not looked for on the hub."""
    with pytest.raises(ConfigurationError, match=f"--model {model}: there is no such folder"):
        load_torch(model, device="cpu")


def test_a_folder_without_a_model_is_said(tmp_path: Path) -> None:
    """An empty folder is told from a broken one."""
    with pytest.raises(ConfigurationError, match=r"there is no config\.json"):
        load_torch(str(tmp_path), device="cpu")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="can't be loaded"):
        load_torch(str(tmp_path), device="cpu")


def test_an_encoder_without_a_head_is_refused(tmp_path: Path) -> None:
    """A base model would load with a random head; it is refused instead."""
    tokenizer = tiny.fast(tiny.wordpiece(), POSITIONS, **tiny.BERT_NAMES)
    tiny.save(tmp_path, transformers.BertModel, transformers.BertConfig(**SMALL), tokenizer)
    with pytest.raises(ConfigurationError, match="not a cross-encoder: BertModel"):
        load_torch(str(tmp_path), device="cpu")


def test_an_unreachable_hub_says_what_to_use_instead(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the hub, and without an earlier download, the error comes at once and names two ways out."""
    import huggingface_hub

    def refuse(*args: object, **kwargs: object) -> None:
        raise ConnectionError("Name or service not known\nand more")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    started = time.monotonic()
    with pytest.raises(ConfigurationError) as caught:
        load_torch("nobody/nothing-like-this", device="cpu")
    assert time.monotonic() - started < 5
    message = str(caught.value)
    assert "--model FOLDER" in message
    assert "--model ms-marco-MiniLM-L-12-v2" in message
    assert "\n" not in message


def test_an_earlier_download_serves_without_the_hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bert: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """If the hub does not answer, the copy in its cache is used, and the log says so."""
    import huggingface_hub

    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--some--model" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for file in bert.iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())
    (tmp_path / "models--some--model" / "refs").mkdir()
    (tmp_path / "models--some--model" / "refs" / "main").write_text(commit)

    def refuse(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with caplog.at_level("WARNING"):
        found = checkpoint.locate("some/model", None)
    assert found == Source("some/model", "some/model", commit, local_only=True)
    assert "does not answer" in caplog.text


def test_importing_the_light_modules_does_not_import_torch() -> None:
    """What --help needs is there without torch."""
    code = (
        "import sys, server.models.base, server.models.embedded, server.errors; "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ})
