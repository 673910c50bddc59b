"""Int8: close to float32, independent of company, and refused where it would be wrong."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from server.errors import ConfigurationError
from server.models import int8, int8_files, torch_model
from server.models.base import EncodedPair, Model, Windowing
from server.models.calibrate import Calibration, Measured, quantise_input
from server.models.checkpoint import locate
from server.models.embedded import EMBEDDED_MODEL_ID
from server.models.int8 import Int8Linears
from server.models.quantise import Quality, quantise
from server.models.torch_model import load_torch
from tests.models import tiny
from tests.models.checkpoints import PACKED, PADDED, POSITIONS, SMALL
from tests.models.texts import docstrings

SAMPLES = [(summary, body[:200]) for summary, body in docstrings()[:40]]


def encode(model: Model, count: int = 24) -> list[EncodedPair]:
    pairs: list[EncodedPair] = []
    for _, body in docstrings()[60 : 60 + count]:
        (found,) = model.encode_documents(model.encode_query("sort a list"), [body[:300]], Windowing())
        pairs += found.pairs
    return pairs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return PACKED["bert"](tmp_path_factory.mktemp("int8") / "bert")


@pytest.fixture(scope="module")
def quantised(folder: Path) -> tuple[Path, Quality]:
    return quantise(str(folder), calibration=SAMPLES, tasks=3)


def test_lies_beside_the_model_with_its_quality(folder: Path, quantised: tuple[Path, Quality]) -> None:
    """The files and the figures that were measured are in the model's folder, under int8/."""
    where, measured = quantised
    assert where == folder / "int8"
    written = json.loads((where / "quality.json").read_text())
    assert written["mrr_int8"] == measured.mrr_int8
    assert written["mrr_loss"] == pytest.approx(measured.mrr_float32 - measured.mrr_int8)
    assert measured.tasks == 3


def test_is_close_to_float32(folder: Path, quantised: tuple[Path, Quality]) -> None:
    """Logits correlate with the float model's, and the model says that it runs in int8."""
    exact = load_torch(str(folder), device="cpu")
    coarse = load_torch(str(folder), device="cpu", dtype="int8")
    assert coarse.info.execution == "torch packed int8 cpu"
    assert coarse.info.fingerprint != exact.info.fingerprint
    pairs = encode(exact)
    found, wanted = coarse.submit(pairs).wait(), exact.submit(pairs).wait()
    # Random weights amplify rounding as trained ones do not.
    assert np.corrcoef(found, wanted)[0, 1] > 0.9


def test_fingerprints_cover_all_that_decides_logits(
    folder: Path, quantised: tuple[Path, Quality], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every byte of the files counts, and so do the kernels; what was measured does not."""
    source = locate(str(folder), None)
    copy = shutil.copytree(quantised[0], tmp_path / "int8")
    monkeypatch.setattr(int8_files, "int8_folder", lambda source: copy)
    digest = json.loads((copy / "int8.json").read_text())["weights"]
    names = [int8_files.load_int8(source, digest)[1]]
    quality = json.loads((copy / "quality.json").read_text())
    (copy / "quality.json").write_text(json.dumps({**quality, "tasks": 7}))
    assert int8_files.load_int8(source, digest)[1] == names[0]
    tensors = bytearray((copy / "int8.safetensors").read_bytes())
    tensors[-1] ^= 1
    (copy / "int8.safetensors").write_bytes(tensors)
    names.append(int8_files.load_int8(source, digest)[1])
    manifest = json.loads((copy / "int8.json").read_text())
    manifest["inputs"][0]["scale"] *= 2
    (copy / "int8.json").write_text(json.dumps(manifest))
    names.append(int8_files.load_int8(source, digest)[1])
    monkeypatch.setattr(int8_files, "kernels", lambda: "another processor's")
    names.append(int8_files.load_int8(source, digest)[1])
    assert len(set(names)) == len(names)


def test_company_does_not_matter(folder: Path, quantised: tuple[Path, Quality]) -> None:
    """Ranges are fixed, so a pair's logit is the same alone and in any batch."""
    model = load_torch(str(folder), device="cpu", dtype="int8")
    pairs = encode(model)
    together = model.submit(pairs).wait()
    alone = np.concatenate([model.submit([pair]).wait() for pair in pairs])
    np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.slow
def test_the_real_model_ranks_as_well(tmp_path: Path) -> None:
    """The embedded cross-encoder's int8 logits are within 0.1 of float32 on average, and rank alike."""
    _, measured = quantise(EMBEDDED_MODEL_ID, tmp_path / "int8", tasks=20)
    assert measured.mean_difference < 0.1
    assert measured.largest_difference < 0.6
    assert measured.mrr_loss <= 0.05  # twenty queries can't tell 0.005


@pytest.mark.parametrize(
    "name", ["xlm-roberta", "modernbert-cls", "distilbert", "deberta-v3", "qwen3", "gemma"]
)
def test_every_packed_family(name: str, tmp_path: Path) -> None:
    """What runs packed can be quantised, whatever its layers are called."""
    folder = PACKED[name](tmp_path / name)
    _, measured = quantise(str(folder), calibration=SAMPLES, tasks=1)
    model = load_torch(str(folder), device="cpu", dtype="int8")
    exact = load_torch(str(folder), device="cpu")
    pairs = encode(exact)
    found, wanted = model.submit(pairs).wait(), exact.submit(pairs).wait()
    assert np.corrcoef(found, wanted)[0, 1] > 0.8
    assert np.isfinite(measured.largest_difference)


def test_without_files_the_command_is_named(tmp_path: Path) -> None:
    """A model that was not quantised is refused with the command that does it."""
    folder = PACKED["bert"](tmp_path / "bert")
    with pytest.raises(ConfigurationError, match="python -m server quantize --model") as caught:
        load_torch(str(folder), device="cpu", dtype="int8")
    assert str(folder) in str(caught.value)


def test_files_of_other_weights_are_refused(
    folder: Path, quantised: tuple[Path, Quality], tmp_path: Path
) -> None:
    """An int8 form does not outlive the weights that it was made of."""
    config = transformers.BertConfig(**{**SMALL, "pad_token_id": 0})
    tokenizer = tiny.fast(tiny.wordpiece(), POSITIONS, **tiny.BERT_NAMES)
    other = tiny.save(tmp_path, transformers.BertForSequenceClassification, config, tokenizer, seed=5)
    (other / "int8").symlink_to(quantised[0])
    with pytest.raises(ConfigurationError, match="other weights"):
        load_torch(str(other), device="cpu", dtype="int8")


def test_runs_on_the_cpu_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Int8 on another device is refused by name."""
    monkeypatch.setattr(torch_model, "resolve_device", lambda name: torch.device("cuda:0"))
    with pytest.raises(ConfigurationError, match="--dtype int8: runs on the CPU only"):
        load_torch(str(folder), device="cuda:0", dtype="int8")


def test_padded_models_cannot_be_quantised(tmp_path: Path) -> None:
    """A model that can't run packed is refused before any work."""
    with pytest.raises(ConfigurationError, match="runs padded"):
        quantise(str(PADDED["mpnet"](tmp_path)), calibration=SAMPLES, tasks=1)


def test_wrong_kernels_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor whose int8 products saturate, or a torch without them, is refused."""
    monkeypatch.setattr(torch.ops.onednn, "qlinear_pointwise", lambda *args: torch.zeros(32, 64))
    int8.check_kernels.cache_clear()
    with pytest.raises(ConfigurationError, match="can't multiply in int8"):
        int8.check_kernels()
    monkeypatch.undo()
    int8.check_kernels.cache_clear()
    int8.check_kernels()


class _Block(nn.Module):
    """Two layers on one input, then two with a GELU between them."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(24, 16), nn.Linear(24, 16)
        self.up, self.act, self.down = nn.Linear(16, 40), nn.GELU(), nn.Linear(40, 8)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.down(self.act(self.up(self.left(inputs) + self.right(inputs))))
        return result


def test_outliers_move_into_the_weights() -> None:
    """With one huge channel, smoothing is chosen and keeps the error small."""
    spec, tensors, error = quantise_input(_with_a_wide_channel())
    assert tensors["layer.smooth"][3] > 3 * tensors["layer.smooth"].median()
    assert "layer.wide" not in tensors
    assert spec.scale < 1.0
    assert error < 1e-3


def test_outliers_of_a_gelu_pass_its_codes_by() -> None:
    """Where nothing can be smoothed, huge channels stay in float32 and the others keep a narrow range."""
    spec, tensors, error = quantise_input(_with_a_wide_channel(written_by="another"))
    assert "layer.smooth" not in tensors
    assert 3 in tensors["layer.wide"]
    assert not tensors["layer.codes"][:, tensors["layer.wide"]].any()
    assert spec.scale < 10 / 255
    assert error < 1e-3


def _with_a_wide_channel(written_by: str = "") -> Measured:
    torch.manual_seed(0)
    rows = torch.randn(512, 24)
    rows[:, 3] *= 60
    measured = Measured(["layer"], [nn.Linear(24, 16)], written_by=written_by)
    measured.see(rows)
    return measured


def test_shared_inputs_and_chains() -> None:
    """Layers on one input share its codes, and codes pass through GELU without becoming floats."""
    torch.manual_seed(1)
    block = _Block().eval()
    inputs = torch.randn(1, 400, 24)
    with torch.inference_mode():
        watch = Calibration()
        watch.install(block)
        watch.fuse_gelu(block, "up", "act", (block, "down"))
        wanted = block(inputs)
        assert [measured.linears for measured in watch.inputs] == [["left", "right"], ["up"], ["down"]]
        made = [quantise_input(measured) for measured in watch.inputs]
        layers = Int8Linears([spec for spec, _, _ in made], {k: v for _, t, _ in made for k, v in t.items()})
        layers.install(block)
        layers.fuse_gelu(block, "up", "act", (block, "down"))
        assert isinstance(block.act, nn.Identity)
        middle = block.up(torch.randn(1, 3, 16))
        found = block(inputs)
    assert middle.dtype == torch.uint8
    assert float((found - wanted).var() / wanted.var()) < 0.001
