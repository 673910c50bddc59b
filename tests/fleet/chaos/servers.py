"""A server of the fleet: the simulated model, and TLS where Nginx only passes bytes."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2

from deploy.local.certificate import CertificateFiles
from tests.fleet.chaos.workload import MAX_TOKENS
from tests.support.calls import health_stub
from tests.support.server_process import ServerProcess

__all__ = ["TOKENS_PER_SECOND", "FleetServer"]

TOKENS_PER_SECOND = 8_000
"""Of each server: a call of ten documents takes it about 20 ms."""
# Longer than the gate needs to notice and Nginx to reload, with room for a busy machine.
DRAIN_DELAY_S = 1.5
HEALTH_TIMEOUT_S = 2.0


class FleetServer(ServerProcess):
    """`python -m server` with options that can change from one start to the next."""

    def __init__(
        self, folder: Path, name: str, certificate: CertificateFiles | None, options: dict[str, str]
    ) -> None:
        self.http_port = int(options.get("--http-port", 0))
        self.certificate = certificate
        """Its own, when it speaks TLS."""
        self._usual = {
            "--max-tokens": str(MAX_TOKENS),
            # Every call is computed: answers from the cache would hide what breaks.
            "--pair-cache-mib": "0",
            "--simulated-tokens-per-second": str(TOKENS_PER_SECOND),
            # Warming up runs full batches at the simulated speed; small ones make restarts quick.
            "--token-budget": "512",
            "--drain-delay": str(DRAIN_DELAY_S),
            **options,
        }
        if certificate is not None:
            self._usual["--tls-certificate"] = str(certificate.certificate)
            self._usual["--tls-key"] = str(certificate.key)
        super().__init__(folder, *_flat(self._usual), name=name)

    def restart(self, **changes: str) -> None:
        """Start it again after it has ended, or end it first; `changes` hold for this run only."""
        self.stop()
        options = {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
        self.command = self._command("simulated", _flat({**self._usual, **options}))
        self.start()
        self.wait_ready()

    @contextlib.contextmanager
    def changed(self, **options: str) -> Iterator[None]:
        """Run with other options for a while."""
        self.restart(**options)
        try:
            yield
        finally:
            self.restart()

    def channel(self) -> grpc.Channel:
        """To this server alone, past Nginx."""
        if self.certificate is None:
            return grpc.insecure_channel(self.address)
        credentials = grpc.ssl_channel_credentials(self.certificate.root.read_bytes())
        return grpc.secure_channel(self.address, credentials)

    def health(self, service: str = "") -> int | None:
        """What the server says of itself now; None when it doesn't answer."""
        with self.channel() as channel, contextlib.suppress(grpc.RpcError):
            request = health_pb2.HealthCheckRequest(service=service)
            return int(health_stub(channel).Check(request, timeout=HEALTH_TIMEOUT_S).status)
        return None


def _flat(options: dict[str, str]) -> list[str]:
    return [part for pair in options.items() for part in pair]
