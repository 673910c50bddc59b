"""The error tree, and how each failure of a call becomes one of its members."""

import inspect
import pickle
from typing import Any

import grpc
import pytest
import rerank
from rerank import (
    AuthenticationError,
    DeadlineExceededError,
    InvalidRequestError,
    ModelNotServedError,
    OverloadedError,
    PermissionDeniedError,
    ProtocolError,
    RerankError,
    ScoringFailedError,
    TooLargeError,
    UnavailableError,
    _errors,
)
from rerank.v1 import rerank_pb2 as wire

from tests.sdk.scoring_server import Fail, ScoringServer
from tests.sdk.twins import Connect, Twin

ERRORS = [getattr(_errors, name) for name in _errors.__all__]
NO_RETRY_MS = -1


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_is_drawn_in_the_tree(kind: type[RerankError]) -> None:
    """The tree at the top of the file shows each class, and each is public."""
    assert kind.__name__ in (_errors.__doc__ or "")
    assert kind.__name__ in rerank.__all__
    assert issubclass(kind, RerankError)
    assert inspect.getdoc(kind)


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_errors_survive_pickling(kind: type[RerankError]) -> None:
    """An error that crosses a process boundary keeps everything it knows."""
    error = kind(
        "message",
        code=grpc.StatusCode.ABORTED,
        reason="REASON",
        field="documents[3]",
        request_id="id",
        retry_after_s=1.5,
        servers=("a",),
    )
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert vars(copy) == vars(error)
    assert str(copy) == str(error) == "message [REASON, request id, by a]"


def test_errors_are_what_python_programmers_expect() -> None:
    """Errors can be caught without importing this package, where Python has a name for them."""
    assert issubclass(InvalidRequestError, ValueError)
    assert issubclass(DeadlineExceededError, TimeoutError)
    assert issubclass(UnavailableError, ConnectionError)
    assert issubclass(rerank.ClientClosedError, RuntimeError)
    with pytest.raises(OSError, match="gone"):
        raise UnavailableError("gone")


@pytest.mark.parametrize(
    ("reason", "code", "kind"),
    [
        ("INVALID_REQUEST", grpc.StatusCode.INVALID_ARGUMENT, InvalidRequestError),
        ("TOO_LARGE", grpc.StatusCode.INVALID_ARGUMENT, TooLargeError),
        ("UNAUTHENTICATED", grpc.StatusCode.UNAUTHENTICATED, AuthenticationError),
        ("PERMISSION_DENIED", grpc.StatusCode.PERMISSION_DENIED, PermissionDeniedError),
        ("MODEL_NOT_SERVED", grpc.StatusCode.NOT_FOUND, ModelNotServedError),
        ("OVERLOADED", grpc.StatusCode.RESOURCE_EXHAUSTED, OverloadedError),
        ("DEADLINE_EXCEEDED", grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceededError),
        ("DRAINING", grpc.StatusCode.UNAVAILABLE, UnavailableError),
        ("NOT_READY", grpc.StatusCode.UNAVAILABLE, UnavailableError),
        ("SCORING_FAILED", grpc.StatusCode.INTERNAL, ScoringFailedError),
        ("INTERNAL", grpc.StatusCode.INTERNAL, RerankError),
        ("A_REASON_OF_THE_FUTURE", grpc.StatusCode.INVALID_ARGUMENT, InvalidRequestError),
    ],
)
def test_the_servers_own_errors_arrive_whole(
    client: Twin, server: ScoringServer, reason: str, code: grpc.StatusCode, kind: type[RerankError]
) -> None:
    """What the server says in rerank-error-bin is in the error, with the names of server and call."""
    told = wire.Error(code=code.value[0], reason=reason, message="what to do", field="query")
    told.retry_after.FromMilliseconds(250)
    server.script = [Fail(code, error=told, pushback_ms=NO_RETRY_MS)]
    with pytest.raises(kind, match="what to do") as caught:
        client.rerank("query", ["a"], request_id="id-7")
    error = caught.value
    assert type(error) is kind
    assert (error.code, error.reason, error.field) == (code, reason, "query")
    assert (error.request_id, error.retry_after_s, error.servers) == ("id-7", 0.25, ("gpu-0",))


def test_every_reason_of_the_server_is_known() -> None:
    """No reason of the server's tree would arrive as a bare RerankError."""
    errors = pytest.importorskip("server.errors")
    from rerank._translate import KIND_OF_REASON

    kinds: list[Any] = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    reasons = {kind.reason for kind in kinds if issubclass(kind, errors.RerankError)}
    assert reasons - {"INTERNAL"} == set(KIND_OF_REASON)


@pytest.mark.parametrize(
    ("code", "details", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "no", InvalidRequestError),
        (grpc.StatusCode.UNAUTHENTICATED, "no", AuthenticationError),
        (grpc.StatusCode.PERMISSION_DENIED, "no", PermissionDeniedError),
        (grpc.StatusCode.NOT_FOUND, "no", ModelNotServedError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "slow down", OverloadedError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "Received message larger than max (9 vs. 4)", TooLargeError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "no", DeadlineExceededError),
        (grpc.StatusCode.UNAVAILABLE, "lb: no backend", UnavailableError),
        (grpc.StatusCode.CANCELLED, "stopping", UnavailableError),
        (grpc.StatusCode.UNIMPLEMENTED, "Method not found!", ProtocolError),
        (grpc.StatusCode.UNKNOWN, "Received http2 header with status: 413", TooLargeError),
        (grpc.StatusCode.UNKNOWN, "no", RerankError),
        (grpc.StatusCode.INTERNAL, "no; then: Stream removed", RerankError),
        (grpc.StatusCode.DATA_LOSS, "no", RerankError),
    ],
)
def test_errors_of_a_proxy_are_told_by_their_status(
    client: Twin, server: ScoringServer, code: grpc.StatusCode, details: str, kind: type[RerankError]
) -> None:
    """Without rerank-error-bin the status decides, and the error still names the call."""
    server.script = [Fail(code, details, pushback_ms=NO_RETRY_MS)]
    with pytest.raises(kind) as caught:
        client.rerank("query", ["a"], request_id="id-8")
    assert type(caught.value) is kind
    assert caught.value.code is code
    assert caught.value.request_id == "id-8"


def test_a_broken_error_trailer_is_ignored(client: Twin, server: ScoringServer) -> None:
    """A trailer that can't be read leaves the status to tell what happened."""

    def garbage(request: wire.RerankRequest, context: grpc.ServicerContext) -> wire.RerankResponse:
        context.set_trailing_metadata((("rerank-error-bin", b"\xff\xff\xff"),))
        context.abort(grpc.StatusCode.INTERNAL, "the details")
        raise AssertionError

    server.script = [garbage]
    with pytest.raises(RerankError, match="the details"):
        client.rerank("query", ["a"])


def test_pushback_of_a_proxy_is_told(connect: Connect, server: ScoringServer) -> None:
    """retry_after_s falls back on the pushback that a proxy wrote."""
    server.script = [Fail(grpc.StatusCode.RESOURCE_EXHAUSTED, "slow down", pushback_ms=50)] * 4
    with pytest.raises(OverloadedError) as caught:
        connect(server.target).rerank("query", ["a"])
    assert caught.value.retry_after_s == 0.05


def test_get_model_translates_errors_too(client: Twin, server: ScoringServer) -> None:
    """Errors of every method are of this package."""
    server.script = [Fail(grpc.StatusCode.UNAUTHENTICATED)]
    with pytest.raises(AuthenticationError):
        client.get_model()
