"""Requests of every shape, briefly."""

from collections.abc import Iterator

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from rerank.v1 import rerank_pb2, rerank_pb2_grpc

from tests.fuzz.api import METADATA, REQUESTS, check_failure, check_response
from tests.support.server_process import ServerProcess


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[rerank_pb2_grpc.RerankServiceStub]:
    folder = tmp_path_factory.mktemp("api")
    with (
        ServerProcess(folder, "--max-documents", "10", "--max-tokens", "64") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        yield rerank_pb2_grpc.RerankServiceStub(channel)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(request=REQUESTS, metadata=METADATA)
def test_every_request_is_answered_or_refused_with_reason(
    stub: rerank_pb2_grpc.RerankServiceStub,
    request: rerank_pb2.RerankRequest,
    metadata: list[tuple[str, str]],
) -> None:
    """A right answer, or a status that says what to change; never a stack trace."""
    try:
        response = stub.Rerank(request, timeout=20, metadata=tuple(metadata))
    except grpc.RpcError as failure:
        assert isinstance(failure, grpc.Call)
        check_failure(request, failure)
    else:
        check_response(request, response)
