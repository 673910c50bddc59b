"""Quantising a checkpoint gives the same bytes wherever it is done."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from server.models import calibrate
from server.models.calibrate import Calibration, quantise_input
from server.models.embedded import EMBEDDED_MODEL_ID
from tests.models.checkpoints import PACKED

FAMILIES = ("bert", "deberta-v3", "modernbert-cls", "qwen3", "gemma")

SCRIPT = """
import json, sys
from hashlib import sha256
from pathlib import Path
import torch
from server.models import attention
from server.models.quantise import quantise
from server.models.torch_model import load_torch
from tests.models.texts import docstrings

threads, products, out, *models = sys.argv[1:]
torch.set_num_threads(int(threads))
attention.onednn_products_pay = lambda: products == "1"
samples = [(summary, body[:400]) for summary, body in docstrings()[:24]]
found = {}
for model in models:
    folder, _ = quantise(model, Path(out) / Path(model).name, calibration=samples, tasks=1)
    for name in ("int8.json", "int8.safetensors"):
        found[f"{model} {name}"] = sha256((folder / name).read_bytes()).hexdigest()
    if Path(model).is_dir():
        (Path(model) / "int8").symlink_to(folder)
        found[f"{model} fingerprint"] = load_torch(model, device="cpu", dtype="int8").info.fingerprint
        (Path(model) / "int8").unlink()
print(json.dumps(found))
"""


def quantised(models: list[str], out: Path, *, threads: int, products: bool) -> dict[str, str]:
    """Digests of the files, made in a process of its own."""
    # Only files that a search path names are importable from a program given by -c.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", SCRIPT, str(threads), str(int(products)), str(out), *models]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    found: dict[str, str] = json.loads(ended.stdout.splitlines()[-1])
    return found


def test_threads_and_kernels_change_no_byte(tmp_path: Path) -> None:
    """Processes with one thread and with two, and with different attention, write the same int8 files."""
    models = [str(PACKED[name](tmp_path / name)) for name in FAMILIES]
    one = quantised(models, tmp_path / "one", threads=1, products=False)
    assert len(one) == 3 * len(models)
    assert quantised(models, tmp_path / "two", threads=2, products=True) == one


@pytest.mark.slow
def test_threads_and_kernels_change_no_byte_of_the_real_model(tmp_path: Path) -> None:
    """The embedded cross-encoder's int8 form is the same with one thread and with two."""
    one = quantised([EMBEDDED_MODEL_ID], tmp_path / "one", threads=1, products=False)
    assert quantised([EMBEDDED_MODEL_ID], tmp_path / "two", threads=2, products=True) == one


def test_errors_of_sums_change_nothing() -> None:
    """Inputs that differ by what other kernels' sums would differ by give the same files."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 48).double()
    rows = torch.randn(3, 300, 64, dtype=torch.float64) * torch.rand(64, dtype=torch.float64).exp()

    def made(error: float) -> dict[str, torch.Tensor]:
        watch = Calibration()
        backbone = torch.nn.Sequential(layer)
        watch.install(backbone)
        generator = torch.Generator().manual_seed(1)
        for part in rows:
            noise = torch.randn(part.shape, generator=generator, dtype=torch.float64)
            backbone(part * (1 + error * noise))
        spec, tensors, _ = quantise_input(watch.inputs[0])
        return {**tensors, "range": torch.tensor([spec.scale, spec.zero_point], dtype=torch.float64)}

    plain, moved = made(0.0), made(1e-14)
    assert plain.keys() == moved.keys()
    assert all(torch.equal(plain[name], moved[name]) for name in plain)


def test_a_network_stays_in_float64() -> None:
    """Norms that ask for float32 to be more precise do not make a float64 network less so."""

    class Norm(torch.nn.Module):
        def forward(self, states: torch.Tensor) -> torch.Tensor:
            raised = states.to(torch.float32).float().to(dtype=torch.float32)
            return raised * 3

    backbone = Norm()
    Calibration().install(backbone)
    value = torch.tensor([1 / 3], dtype=torch.float64)
    assert backbone(value) == value * 3
    assert backbone(value.to(torch.bfloat16)).dtype == torch.float32
    assert calibrate._rounded(value, 8) == 171 / 512
