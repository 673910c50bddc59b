"""The typed Python client of the Rerank service.

Example:
    from rerank import RerankClient

    with RerankClient("lb:443") as client:
        ranking = client.rerank("what do pandas eat?", ["Pandas eat bamboo.", "Cats sleep."])
        print(ranking[0].document, ranking[0].score)
"""

from rerank._async_client import AsyncRerankClient
from rerank._client import RerankClient
from rerank._errors import (
    AuthenticationError,
    ClientClosedError,
    DeadlineExceededError,
    DeviceLostError,
    InvalidRequestError,
    ModelNotServedError,
    OverloadedError,
    PermissionDeniedError,
    ProtocolError,
    RerankError,
    ScoringFailedError,
    TooLargeError,
    UnavailableError,
)
from rerank._fake import AsyncFakeRerankClient, FakeCall, FakeRerankClient
from rerank._health import ServingStatus
from rerank._hedging import HedgePolicy
from rerank._model_info import Limits, ModelInfo, ScoreRange
from rerank._options import Priority, RerankOptions, Truncation
from rerank._results import FailedDocument, RankedDocument, Ranking, Span, Timings, Usage
from rerank._retry import RetryPolicy
from rerank._stream import Query
from rerank._tls import TLSConfig
from rerank._version import __version__

__all__ = [
    "AsyncFakeRerankClient",
    "AsyncRerankClient",
    "AuthenticationError",
    "ClientClosedError",
    "DeadlineExceededError",
    "DeviceLostError",
    "FailedDocument",
    "FakeCall",
    "FakeRerankClient",
    "HedgePolicy",
    "InvalidRequestError",
    "Limits",
    "ModelInfo",
    "ModelNotServedError",
    "OverloadedError",
    "PermissionDeniedError",
    "Priority",
    "ProtocolError",
    "Query",
    "RankedDocument",
    "Ranking",
    "RerankClient",
    "RerankError",
    "RerankOptions",
    "RetryPolicy",
    "ScoreRange",
    "ScoringFailedError",
    "ServingStatus",
    "Span",
    "TLSConfig",
    "Timings",
    "TooLargeError",
    "Truncation",
    "UnavailableError",
    "Usage",
    "__version__",
]
