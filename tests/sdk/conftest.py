"""Fixtures of the SDK's tests."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.sdk.scoring_server import ScoringServer
from tests.sdk.twins import AsyncTwin, Connect, SyncTwin, Twin


@pytest.fixture
def server() -> Iterator[ScoringServer]:
    """A server in plain text on loopback."""
    with ScoringServer() as running:
        yield running


@pytest.fixture(params=[SyncTwin, AsyncTwin], ids=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Make clients of one of both kinds; the test runs once for each kind."""
    with ExitStack() as clients:

        def make(target: str, **options: Any) -> Twin:
            twin: Twin = clients.enter_context(request.param(target, **options))
            return twin

        yield make


@pytest.fixture
def client(connect: Connect, server: ScoringServer) -> Twin:
    """A client of `server` with nothing but defaults."""
    return connect(server.target)
