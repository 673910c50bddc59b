"""A recipe for one large request: small enough to keep, built when it is about to be sent."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from tests.fuzz.fronts import Request

__all__ = ["Costly", "Recipes"]

Recipes: TypeAlias = Mapping[str, Callable[[], bytes]]
"""Bodies or messages by what is large about them."""


@dataclass(frozen=True, slots=True)
class Costly:
    """One entry of the catalogue."""

    name: str
    build: Callable[[], Request]
    brief: bool = False
    """Whether it stands for others of its kind where there is no time for all."""
