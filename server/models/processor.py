"""What kind of processor this is: what decides which kernels serve best, and the last bits of sums."""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

__all__ = ["Processor", "kernels", "processor"]

_CPUINFO = Path("/proc/cpuinfo")


class Processor(NamedTuple):
    """As the processor itself says."""

    vendor: str
    """AuthenticAMD, GenuineIntel; "" where Linux does not tell."""
    family: int
    """Of AMD's, 25 is Zen 3 and 4, 26 Zen 5."""


@cache
def processor() -> Processor:
    """The processor of this machine."""
    try:
        lines = _CPUINFO.read_text().split("\n\n", 1)[0].splitlines()
    except OSError:
        return Processor("", 0)
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    family = facts.get("cpu family", "")
    return Processor(facts.get("vendor_id", ""), int(family) if family.isdecimal() else 0)


def kernels() -> str:
    """A name for the float32 kernels of this machine; where it is the same, so are the last bits of sums.

    torch chooses among its own kernels by instruction set, and MKL among its by vendor, too.
    """
    vendor, family = processor()
    return f"torch {torch.__version__} {torch.backends.cpu.get_cpu_capability()} {vendor} {family}"
