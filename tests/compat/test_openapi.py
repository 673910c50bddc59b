"""The OpenAPI document says what the server does."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.compat.client_environment import SCHEMATHESIS
from tests.compat.http_server import HttpServerProcess

EXAMPLES = 10
TIMEOUT_S = 200


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServerProcess]:
    """No schema can say how many tokens a text has, so none shall be too long."""
    with HttpServerProcess(tmp_path_factory.mktemp("roomy"), "--no-log-requests") as process:
        yield process


# A deadline that has passed is answered 504, and that is no fault of the server's.
CONFIGURATION = """
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "504"]
"""


@pytest.mark.slow
def test_schemathesis_finds_nothing(roomy: HttpServerProcess, tmp_path: Path) -> None:
    """Valid requests are answered as described, invalid ones refused as described, none is a 500."""
    configuration = tmp_path / "schemathesis.toml"
    configuration.write_text(CONFIGURATION)
    command = [
        SCHEMATHESIS.python,
        "-m",
        "schemathesis.cli",
        "--config-file",
        str(configuration),
        "run",
        f"{roomy.url}/openapi.json",
        "--max-examples",
        str(EXAMPLES),
        "--phases",
        "examples,coverage,fuzzing",
        "--seed",
        "1",
        "--workers",
        "2",
        "--no-color",
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_every_path_is_described(server: HttpServerProcess) -> None:
    """With the schema of each dialect that it takes."""
    document = httpx.get(f"{server.url}/openapi.json", trust_env=False).json()
    assert document["openapi"].startswith("3.1")
    assert {"/rerank", "/v1/rerank", "/v2/rerank", "/score", "/info", "/health", "/metrics"} <= set(
        document["paths"]
    )
    body = document["paths"]["/rerank"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    named = {entry["$ref"].rpartition("/")[2] for entry in body["anyOf"]}
    assert {"SupersetRequest", "TeiRequest", "VoyageRequest", "NimRequest"} <= named
    assert named <= set(document["components"]["schemas"])
