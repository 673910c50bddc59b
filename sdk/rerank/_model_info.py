"""What a server says about its model and its limits."""

from dataclasses import dataclass

from rerank.v1 import rerank_pb2 as wire

__all__ = ["Limits", "ModelInfo", "ScoreRange"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may hold on this server; the client splits what exceeds it."""

    max_documents: int
    max_request_bytes: int
    max_query_bytes: int
    max_windows_per_document: int


@dataclass(frozen=True, slots=True)
class ScoreRange:
    """Where scores lie when they are not raw."""

    minimum: float
    maximum: float


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The model behind a server; `id` is what `rerank(model=...)` takes.

    `fingerprint` is equal for servers whose scores can be compared, and differs where
    weights, precision or prompt do; it is empty for servers that are too old to tell.
    """

    id: str
    revision: str
    architecture: str
    max_tokens: int
    execution: str
    accepts_instruction: bool
    limits: Limits
    score_range: ScoreRange
    server: str
    server_version: str
    fingerprint: str = ""


def model_info(response: wire.GetModelResponse) -> ModelInfo:
    """Read the answer to GetModel."""
    limits, scores = response.limits, response.score_range
    return ModelInfo(
        id=response.model,
        revision=response.revision,
        architecture=response.architecture,
        max_tokens=response.max_tokens,
        execution=response.execution,
        accepts_instruction=response.accepts_instruction,
        limits=Limits(
            max_documents=limits.max_documents,
            max_request_bytes=limits.max_request_bytes,
            max_query_bytes=limits.max_query_bytes,
            max_windows_per_document=limits.max_windows_per_document,
        ),
        score_range=ScoreRange(minimum=scores.minimum, maximum=scores.maximum),
        server=response.server,
        server_version=response.server_version,
        fingerprint=response.fingerprint,
    )
