"""Devices and precisions: what was asked for, what there is, and what their errors mean."""

import contextlib
import ctypes
import gc
import platform
from collections.abc import Callable
from typing import TypeVar

import torch

from server.errors import ConfigurationError
from server.models.base import DeviceLost, DeviceOutOfMemory

__all__ = ["free_caches", "keep_freed_memory", "on_device", "resolve_device", "resolve_dtype"]

T = TypeVar("T")

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

_WIDE_RANGE = ("gemma", "qwen", "llama", "mistral", "phi", "olmo", "smollm")
"""Decoders whose activations exceed float16's range; encoders gain from its finer mantissa."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_KEEP_BYTES = 1 << 30

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
_DEVICE_LOST = ("CUDA error", "CUBLAS_STATUS", "cuDNN error", "device-side assert", "NCCL")


def resolve_device(name: str) -> torch.device:
    """The device that `--device` names: cpu, cuda, cuda:N, or auto.

    Raises:
        ConfigurationError: there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()) or (kind == "cpu" and index):
        raise ConfigurationError(f"--device {name}: use cpu, cuda, cuda:N or auto")
    if kind == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigurationError(
            f"--device {name}: no CUDA device is visible to this process; use --device cpu"
        )
    device = torch.device("cuda", int(index or 0))
    count = torch.cuda.device_count()
    if device.index >= count:
        raise ConfigurationError(
            f"--device {name}: this process sees {count} CUDA device(s); use cuda:0 to cuda:{count - 1}"
        )
    return device


def resolve_dtype(name: str, device: torch.device, model_type: str) -> torch.dtype:
    """The precision that `--dtype` names; auto is float32 on CPU, and 16 bits on CUDA.

    Of the 16-bit formats, float16 is finer and bfloat16 wider: encoders get the first,
    decoders the second.

    Raises:
        ConfigurationError: no such precision.
    """
    if name == "auto":
        if device.type == "cpu":
            return torch.float32
        return torch.bfloat16 if model_type.startswith(_WIDE_RANGE) else torch.float16
    if name not in _DTYPES:
        raise ConfigurationError(f"--dtype {name}: use auto, {', '.join(_DTYPES)} or int8")
    return _DTYPES[name]


def keep_freed_memory() -> None:
    """Let the C library keep memory that the process frees, for the next batch.

    By default glibc gives large blocks back to the system at once, and a batch of 8,192 tokens
    then takes 176,000 page faults, 12% of its time. The price is that the process stays as large
    as its largest batch made it, which it will be again. Elsewhere than on glibc this does nothing.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL("libc.so.6")
    for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
        libc.mallopt(option, _KEEP_BYTES)


def on_device(device: torch.device, call: Callable[[], T]) -> T:
    """Call, and turn torch's errors into the two that the engine acts on; leave all others alone.

    Raises:
        DeviceOutOfMemory: after the caches are freed, so that a smaller batch may fit.
        DeviceLost: CUDA's context is unusable; only a new process helps.
    """
    try:
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            return call()
    except (MemoryError, torch.OutOfMemoryError) as error:
        message = str(error)
    except RuntimeError as error:  # AcceleratorError is one, too
        message = str(error)
        if not any(sign in message for sign in (*_OUT_OF_MEMORY, *_DEVICE_LOST)):
            raise
        if not any(sign in message for sign in _OUT_OF_MEMORY):
            raise DeviceLost(_first_line(message)) from error
    # Here the error is gone, and with its traceback the last references to the batch's tensors.
    free_caches(device)
    raise DeviceOutOfMemory(_first_line(message))


def free_caches(device: torch.device) -> None:
    """Give cached memory back to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _first_line(message: str) -> str:
    return message.strip().split("\n", 1)[0]
