"""The real server with HTTP beside gRPC, and a plain way to call it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.support.ports import free_ports
from tests.support.server_process import ServerProcess

__all__ = ["Answer", "HttpServerProcess", "post"]


class HttpServerProcess(ServerProcess):
    """`python -m server` with `--http-port`."""

    def __init__(self, folder: Path, *options: str, name: str = "server", **other: Any) -> None:
        port, self.http_port = free_ports(2)
        other.setdefault("port", port)
        super().__init__(folder, "--http-port", str(self.http_port), *options, name=name, **other)

    @property
    def url(self) -> str:
        """Where HTTP is answered."""
        return f"http://127.0.0.1:{self.http_port}"


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.text)


def post(
    server: HttpServerProcess,
    path: str,
    body: Any,
    *,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 20,
) -> Answer:
    """POST JSON, or bytes as they are."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    with httpx.Client(trust_env=False) as client:
        response = client.post(server.url + path, content=content, headers=headers, timeout=timeout_s)
    return Answer(response.status_code, response.headers, response.text)
