"""A server over HTTP that does as a test says, behind the real Nginx."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from deploy.local.certificate import CertificateFiles
from nginx.render import upstream_servers
from tests.support.nginx import NginxProcess
from tests.support.ports import free_port

__all__ = ["HttpDoor", "StandIn", "http_door"]


class StandIn(ThreadingHTTPServer):
    """Answers "ok" to everything, or what `answer` makes of a path: a status and a body, None to hang up."""

    daemon_threads = True

    def __init__(self, answer: Callable[[str], tuple[int, bytes] | None] = lambda path: (200, b"ok")) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.seen: list[str] = []

    def __enter__(self) -> "StandIn":
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """Whoever hangs up is no error."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StandIn

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.seen.append(self.path)
        answer = self.server.answer(self.path)
        if answer is None:
            self.close_connection = True
            return
        status, body = answer
        head = f"HTTP/1.1 {status} x\r\ncontent-length: {len(body)}\r\n\r\n"
        self.wfile.write(head.encode() + (b"" if self.command == "HEAD" else body))

    do_POST = do_HEAD = do_OPTIONS = do_DELETE = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Nobody listens."""


class HttpDoor(NginxProcess):
    """Nginx at layer 7 in front of servers that speak HTTP alone."""

    def __init__(
        self, folder: Path, certificate: CertificateFiles, members: Sequence[str], **values: str
    ) -> None:
        self.plain_port = free_port()
        super().__init__("l7", folder, certificate, [f"127.0.0.1:{free_port()}"], values)
        (folder / "http_servers.conf").write_text(upstream_servers(members))
        (folder / "plain_listen.conf").write_text(f"listen 127.0.0.1:{self.plain_port};\n")

    @property
    def url(self) -> str:
        """Where HTTP is answered, without TLS."""
        return f"http://127.0.0.1:{self.plain_port}"


@contextmanager
def http_door(
    folder: Path, certificate: CertificateFiles, servers: Sequence[StandIn], *, dead: int = 0, **values: str
) -> Iterator[HttpDoor]:
    """Start the stand-ins, then Nginx; `dead` members are addresses where nobody listens."""
    with ExitStack() as stack:
        running = [stack.enter_context(server) for server in servers]
        members = [f"127.0.0.1:{free_port()}" for _ in range(dead)]
        members += [f"127.0.0.1:{server.server_port}" for server in running]
        yield stack.enter_context(HttpDoor(folder, certificate, members, **values))
