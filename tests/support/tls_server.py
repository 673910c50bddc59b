"""The real server behind TLS, which the plain health check of `ServerProcess` can't get through."""

from pathlib import Path

import grpc

from deploy.local.certificate import CertificateFiles
from tests.support.server_process import ServerProcess

__all__ = ["TlsServer", "secure_channel"]


def secure_channel(
    server: ServerProcess, files: CertificateFiles, client: CertificateFiles | None = None
) -> grpc.Channel:
    """A channel that trusts the root of `files`, with the certificate of `client` if there is one."""
    credentials = grpc.ssl_channel_credentials(
        files.root.read_bytes(),
        client.key.read_bytes() if client else None,
        client.certificate.read_bytes() if client else None,
    )
    return grpc.secure_channel(f"localhost:{server.port}", credentials)


class TlsServer(ServerProcess):
    """A server whose health the test must ask for with a certificate."""

    def __init__(
        self,
        folder: Path,
        files: CertificateFiles,
        *options: str,
        client: CertificateFiles,
        name: str = "server",
    ) -> None:
        tls = ("--tls-certificate", str(files.certificate), "--tls-key", str(files.key))
        super().__init__(folder, *tls, *options, name=name)
        self._files = files
        self._client = client

    def health(self, service: str = "") -> int | None:
        """1, for SERVING, once a connection can be made."""
        with secure_channel(self, self._files, self._client) as channel:
            try:
                grpc.channel_ready_future(channel).result(timeout=2)
            except grpc.FutureTimeoutError:
                return None
        return 1
