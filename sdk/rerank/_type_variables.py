"""The two type variables of this package, so that the twins' signatures are equal objects."""

from typing import TypeVar

__all__ = ["K", "T"]

# What the caller calls a query, and what the caller's documents are.
K = TypeVar("K")
T = TypeVar("T")
