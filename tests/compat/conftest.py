"""One server for all tests that leave it as it is."""

from collections.abc import Iterator

import pytest

from tests.compat.http_server import HttpServerProcess


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServerProcess]:
    """Small limits, so that reaching them is cheap."""
    options = ("--max-documents", "100", "--max-tokens", "64", "--max-request-mib", "1")
    with HttpServerProcess(tmp_path_factory.mktemp("compat"), *options, name="compat") as process:
        yield process
