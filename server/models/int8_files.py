"""Where a checkpoint's int8 form lies, and how it is written and read.

Two of its files decide the logits, and are the same wherever the checkpoint is quantised:
`int8.json` and `int8.safetensors`. The third, `quality.json`, tells what was measured here.
"""

import contextlib
import hashlib
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
from server.models.fingerprint import fingerprint
from server.models.int8 import Int8Input, Int8Linears, Tensors, check_kernels
from server.models.processor import kernels

__all__ = ["int8_folder", "load_int8", "save_int8"]

_FORMAT = 3
_MANIFEST = "int8.json"
_TENSORS = "int8.safetensors"
_QUALITY = "quality.json"


def int8_folder(source: Source) -> Path:
    """Where a checkpoint's int8 form lies: in its folder, or for a hub model in this project's cache."""
    if source.revision is None:
        return Path(source.path) / "int8"
    return cache_dir() / "int8" / source.model_id.replace("/", "--") / source.revision


def load_int8(source: Source, digest: str) -> tuple[Int8Linears, str]:
    """The int8 layers of a checkpoint, and a name for all that decides what they compute.

    That is the content of the files, and the kernels of this machine: where sums of float32 differ in
    the last bit, some codes are rounded to the other side, and logits differ by 0.02 on average.

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
        written = (folder / _MANIFEST).read_text()
        manifest: dict[str, Any] = json.loads(written)
        if manifest["format"] != _FORMAT or manifest["weights"] != digest:
            raise ConfigurationError(
                f"--dtype int8: {folder} was made from other weights or by another version; again: {command}"
            )
        tensors = load_file(folder / _TENSORS)
        with (folder / _TENSORS).open("rb") as file:
            digest_of_file = hashlib.file_digest(file, "blake2b").hexdigest()
        tolerance = float(json.loads((folder / _QUALITY).read_text())["largest_difference"])
    except (OSError, ValueError, KeyError) as error:
        raise ConfigurationError(
            f"--dtype int8: {source.model_id} is not quantised yet; {command}"
        ) from error
    inputs = [Int8Input(**{**entry, "linears": tuple(entry["linears"])}) for entry in manifest["inputs"]]
    return Int8Linears(inputs, tensors, tolerance), fingerprint([written, digest_of_file, kernels()])


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
        source: the checkpoint, whose name is written for people to read.
        digest: of its float weights.
        inputs: as measured.
        tensors: as `Int8Linears` takes them.
        quality: what was measured; `largest_difference` of two logits is what loading allows for.

    Raises:
        ConfigurationError: the folder can't be written.
    """
    manifest = {
        "format": _FORMAT,
        "weights": digest,
        "inputs": [asdict(spec) for spec in inputs],
    }
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".int8.", dir=folder.parent))
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, scratch / _TENSORS)
        (scratch / _TENSORS).chmod(0o644)
        for name, content in ((_MANIFEST, manifest), (_QUALITY, {"model": source.model_id, **quality})):
            (scratch / name).write_text(json.dumps(content, indent=1) + "\n")
        scratch.chmod(0o755)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)
        scratch.rename(folder)
    except OSError as error:
        raise ConfigurationError(
            f"can't write {folder}: {error.strerror or error}; name another folder"
        ) from error
