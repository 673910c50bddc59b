"""A real server with options at the ends of what they allow."""

from pathlib import Path

import annotated_types
import grpc
import pytest
from rerank.v1 import rerank_pb2_grpc

from server.config import Settings
from tests.support.calls import request_of
from tests.support.server_process import ServerProcess

# Which ports are served is not the question, and a server that takes a day to load answers nobody.
LEFT_OUT = {"port", "http_port", "metrics_port", "simulated_startup_s"}


def options_at(kind: type, **other: str) -> list[str]:
    """Every number at its least (Ge) or greatest (Le) value."""
    values: dict[str, str] = {}
    for name, field in Settings.model_fields.items():
        if field.annotation in (int, float) and name not in LEFT_OUT:
            for each in field.metadata:
                if isinstance(each, kind):
                    values[name] = str(each.ge if isinstance(each, annotated_types.Ge) else each.le)  # type: ignore[attr-defined]
    return [
        part
        for name, value in (values | other).items()
        for part in ("--" + name.removesuffix("_s").replace("_", "-"), value)
    ]


@pytest.mark.parametrize(
    "options",
    [
        options_at(annotated_types.Le),
        # At its slowest the simulated device would answer tomorrow.
        options_at(annotated_types.Ge, simulated_tokens_per_second="1000", max_queued_tokens="1000"),
    ],
    ids=["greatest", "least"],
)
def test_a_server_works_at_the_bounds_of_its_options(tmp_path: Path, options: list[str]) -> None:
    """It starts, answers and stops; there is no traceback in its log."""
    with ServerProcess(tmp_path, *options, "--drain-delay", "0", "--drain-grace", "1") as server:
        with grpc.insecure_channel(server.address) as channel:
            assert rerank_pb2_grpc.RerankServiceStub(channel).Rerank(request_of("a"), timeout=20).results
        assert server.stop() == 0
    assert "Traceback" not in server.log.read_text()
