"""Two real servers behind the real Nginx, both protocols on one address."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from deploy.local.certificate import CertificateFiles
from nginx.render import upstream_servers
from tests.compat.http_server import HttpServerProcess
from tests.support.nginx import NginxProcess
from tests.support.ports import free_port

__all__ = ["FrontDoor", "front_door"]


class FrontDoor(NginxProcess):
    """Nginx at layer 7 with HTTP, also on a port without TLS."""

    def __init__(
        self, folder: Path, certificate: CertificateFiles, servers: Sequence[HttpServerProcess], **values: str
    ) -> None:
        self.servers = servers
        self.plain_port = free_port()
        super().__init__("l7", folder, certificate, [server.address for server in servers], values)
        members = [f"127.0.0.1:{server.http_port}" for server in servers]
        (folder / "http_servers.conf").write_text(upstream_servers(members))
        (folder / "plain_listen.conf").write_text(f"listen 127.0.0.1:{self.plain_port};\n")

    @property
    def url(self) -> str:
        """Where HTTP is answered over TLS."""
        return f"https://{self.address}"

    @property
    def plain_url(self) -> str:
        """Where HTTP is answered without TLS."""
        return f"http://127.0.0.1:{self.plain_port}"


@contextmanager
def front_door(
    folder: Path, certificate: CertificateFiles, *, servers: int = 2, **values: str
) -> Iterator[FrontDoor]:
    """Start servers, then Nginx; end them together."""
    with ExitStack() as stack:
        running = [
            stack.enter_context(HttpServerProcess(folder, name=f"server-{index}")) for index in range(servers)
        ]
        yield stack.enter_context(FrontDoor(folder / "nginx", certificate, running, **values))
