"""Where a checkpoint's int8 form lies, and how it is written and read."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from server.errors import ConfigurationError
from server.models.checkpoint import Source
from server.models.embedded import cache_dir
from server.models.fingerprint import digest_of_tensors
from server.models.int8 import Int8Input, Int8Linears, Tensors, check_kernels

__all__ = ["int8_folder", "load_int8", "save_int8"]

_FORMAT = 2
_MANIFEST = "int8.json"
_TENSORS = "int8.safetensors"


def int8_folder(source: Source) -> Path:
    """Where a checkpoint's int8 form lies: in its folder, or for a hub model in this project's cache."""
    if source.revision is None:
        return Path(source.path) / "int8"
    return cache_dir() / "int8" / source.model_id.replace("/", "--") / source.revision


def load_int8(source: Source, digest: str) -> tuple[Int8Linears, str]:
    """The int8 layers of a checkpoint, and a name for their content.

    Args:
        source: the checkpoint.
        digest: of its float weights, which must be those that were quantised.

    Raises:
        ConfigurationError: it was not quantised, or from other weights.
    """
    check_kernels()
    folder = int8_folder(source)
    command = f"python -m server quantize --model {source.model_id if source.revision else source.path}"
    try:
        manifest: dict[str, Any] = json.loads((folder / _MANIFEST).read_text())
        if manifest["format"] != _FORMAT or manifest["weights"] != digest:
            raise ConfigurationError(
                f"--dtype int8: {folder} was made from other weights or by another version; again: {command}"
            )
        tensors = load_file(folder / _TENSORS)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigurationError(
            f"--dtype int8: {source.model_id} is not quantised yet; {command}"
        ) from error
    inputs = [Int8Input(**{**entry, "linears": tuple(entry["linears"])}) for entry in manifest["inputs"]]
    tolerance = float(manifest["quality"]["largest_difference"])
    return Int8Linears(inputs, tensors, tolerance), str(manifest["content"])


def save_int8(
    folder: Path,
    source: Source,
    digest: str,
    inputs: Sequence[Int8Input],
    tensors: Tensors,
    quality: dict[str, float],
) -> None:
    """Write an int8 form, in place of one that is there.

    Args:
        folder: where to.
        source: the checkpoint.
        digest: of its float weights.
        inputs: as measured.
        tensors: as `Int8Linears` takes them.
        quality: figures for people to read.

    Raises:
        ConfigurationError: the folder can't be written.
    """
    entries = [asdict(spec) for spec in inputs]
    manifest = {
        "format": _FORMAT,
        "model": source.model_id,
        "weights": digest,
        "content": digest_of_tensors(tensors, json.dumps(entries)),
        "quality": quality,
        "inputs": entries,
    }
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".int8.", dir=folder.parent))
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, scratch / _TENSORS)
        (scratch / _TENSORS).chmod(0o644)
        (scratch / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        scratch.chmod(0o755)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)
        scratch.rename(folder)
    except OSError as error:
        raise ConfigurationError(
            f"can't write {folder}: {error.strerror or error}; name another folder"
        ) from error
