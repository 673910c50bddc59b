"""Infinity in an environment of its own, since it needs packages older than ours."""

import subprocess
import sys
import venv
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.processes import REPOSITORY
from benchmarks.protocol import Unavailable

__all__ = ["INFINITY_VERSION", "infinity_executable"]

INFINITY_VERSION = "0.0.78"
# Seen working together, with BetterTransformer, which Infinity switches on by default and which
# left optimum with 2.0. Torch is our own version: the same kernels for everybody, and where
# ours is a CPU build, no gigabytes of CUDA.
PINNED = (
    f"infinity-emb[torch,server]=={INFINITY_VERSION}",
    "optimum==1.24.0",
    "transformers==4.48.3",
    "sentence-transformers==3.4.1",
    "huggingface_hub==0.36.2",
    "tokenizers==0.21.4",
    "numpy==1.26.4",
)
FOLDER = REPOSITORY / "benchmarks" / ".peers" / "infinity"
# Written last: an environment without it is half made.
INSTALLED = "installed.txt"
INSTALL_TIMEOUT_S = 600
SHOWN_LOG_LINES = 5


def infinity_executable() -> Path:
    """The command `infinity_emb`, installing it first if need be.

    Raises:
        Unavailable: it can't be installed here.
    """
    executable = FOLDER / "bin" / "infinity_emb"
    requirements = [*PINNED, f"torch=={_own_torch()}"]
    receipt = "\n".join([sys.version, *requirements])
    marker = FOLDER / INSTALLED
    if not (executable.exists() and marker.exists() and marker.read_text() == receipt):
        _install(requirements)
        marker.write_text(receipt)
    return executable


def _install(requirements: list[str]) -> None:
    try:
        venv.create(FOLDER, with_pip=True, clear=True)
        subprocess.run(
            [FOLDER / "bin" / "python", "-m", "pip", "install", "--quiet", *requirements],
            check=True,
            capture_output=True,
            text=True,
            timeout=INSTALL_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"installing it took more than {INSTALL_TIMEOUT_S} s") from error
    except subprocess.CalledProcessError as error:
        reason = "\n".join((error.stderr or str(error)).strip().splitlines()[-SHOWN_LOG_LINES:])
        raise Unavailable(f"it can't be installed: {reason}") from error
    except OSError as error:
        raise Unavailable(f"it can't be installed: {error}") from error


def _own_torch() -> str:
    try:
        return version("torch")
    except PackageNotFoundError as error:
        raise Unavailable("torch is not installed") from error
