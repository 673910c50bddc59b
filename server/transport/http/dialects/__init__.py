"""Which dialect a request speaks: by its path, and where a path has several, by its fields."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import msgspec
from msgspec import UNSET, Raw, UnsetType

from server.transport.http.decoding import decode
from server.transport.http.dialects.base import AnyDialect, Dialect, Facts
from server.transport.http.dialects.infinity import INFINITY
from server.transport.http.dialects.mixedbread import MIXEDBREAD
from server.transport.http.dialects.nim import NIM
from server.transport.http.dialects.score import SCORE
from server.transport.http.dialects.superset import SUPERSET
from server.transport.http.dialects.tei import TEI
from server.transport.http.dialects.voyage import VOYAGE
from server.transport.http.dialects.weaviate import WEAVIATE

__all__ = ["PATHS", "AnyDialect", "Dialect", "Facts", "PathDialects", "dialect_of"]


class _Probe(msgspec.Struct):
    """The fields that tell dialects apart, unparsed."""

    passages: Raw | UnsetType = UNSET
    texts: Raw | UnsetType = UNSET
    property: Raw | UnsetType = UNSET
    input: Raw | UnsetType = UNSET
    truncation: Raw | UnsetType = UNSET
    top_k: Raw | UnsetType = UNSET
    raw_scores: Raw | UnsetType = UNSET
    model: Raw | UnsetType = UNSET
    details: Raw | UnsetType = UNSET

    def has(self, field: str) -> bool:
        """Whether the body has the field, whatever its value."""
        return getattr(self, field) is not UNSET


# Voyage's truncation is a boolean; ours is one of these.
_OUR_TRUNCATION = (b'"end"', b'"error"', b'"chunk"')


def _is_voyage(probe: _Probe) -> bool:
    return _says(probe.top_k) or (_says(probe.truncation) and _word(probe.truncation) not in _OUR_TRUNCATION)


def _says(value: Raw | UnsetType) -> TypeGuard[Raw]:
    """Whether the field has a value; null, from a client of any make, says nothing."""
    return isinstance(value, Raw) and _word(value) != b"null"


def _word(value: Raw) -> bytes:
    """As much of a value as tells it from the words above; all of it may be megabytes."""
    return bytes(memoryview(value)[:8])


def _is_infinity(probe: _Probe) -> bool:
    # Its clients always send both; without a model it is the plain format, with details our own.
    return probe.has("raw_scores") and probe.has("model") and not probe.has("details")


# The first that recognises its own decides.
_DETECTED: tuple[tuple[Callable[[_Probe], bool], AnyDialect], ...] = (
    (lambda probe: probe.has("passages"), NIM),
    (lambda probe: probe.has("texts"), TEI),
    (lambda probe: probe.has("property"), WEAVIATE),
    (lambda probe: probe.has("input"), MIXEDBREAD),
    (_is_voyage, VOYAGE),
    (_is_infinity, INFINITY),
    (lambda probe: True, SUPERSET),
)


@dataclass(frozen=True, slots=True)
class PathDialects:
    """What can be sent to one path."""

    path: str
    dialects: Sequence[AnyDialect]
    summary: str


_ANY = (SUPERSET, TEI, VOYAGE, INFINITY, MIXEDBREAD, NIM, WEAVIATE)

PATHS: tuple[PathDialects, ...] = (
    PathDialects("/rerank", _ANY, "Rerank, in the dialect that the fields tell"),
    PathDialects("/v1/rerank", _ANY, "Rerank: Cohere v1, Jina, vLLM, Voyage"),
    PathDialects("/v2/rerank", _ANY, "Rerank: Cohere v2, vLLM"),
    # What Cohere's clients call when their base_url ends in /v1.
    PathDialects("/v1/v1/rerank", _ANY, "The same as /v1/rerank"),
    PathDialects("/v1/v2/rerank", _ANY, "The same as /v2/rerank"),
    PathDialects("/score", (SCORE,), "Score pairs: vLLM"),
    PathDialects("/v1/score", (SCORE,), "Score pairs: vLLM"),
    PathDialects("/v1/ranking", (NIM,), "Rerank: NVIDIA NIM"),
    PathDialects("/v1/reranking", (MIXEDBREAD,), "Rerank: Mixedbread"),
)


def dialect_of(path: PathDialects, body: bytearray) -> AnyDialect:
    """The dialect of a body; where the path has only one, nothing is looked at.

    Raises:
        InvalidRequest: not a JSON object.
    """
    if len(path.dialects) == 1:
        return path.dialects[0]
    probe = decode(body, _Probe)
    return next(dialect for recognises, dialect in _DETECTED if recognises(probe))
