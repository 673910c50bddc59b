"""TLS for HTTP: the same files as gRPC's, read again when they change."""

import ssl
from pathlib import Path

import structlog

from server.config import Settings
from server.errors import ConfigurationError
from server.transport.tls import TlsFiles

__all__ = ["http_tls_context"]

_log = structlog.get_logger("rerank.tls")


def http_tls_context(settings: Settings) -> ssl.SSLContext | None:
    """A context whose new connections see the files as they are then; None without TLS.

    Raises:
        ConfigurationError: a file can't be read.
    """
    if not settings.tls_certificate:
        return None
    authority = Path(settings.tls_client_authority) if settings.tls_client_authority else None
    return _Renewing(TlsFiles(Path(settings.tls_certificate), Path(settings.tls_key), authority)).first


class _Renewing:
    """Swaps the context of each connection that begins for the latest one."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self.first = self._read()
        self._latest = self.first
        # OpenSSL calls it for every handshake, whether or not the client names a host.
        self.first.sni_callback = self._on_hello

    def _on_hello(self, connection: ssl.SSLObject, host: str | None, context: ssl.SSLContext) -> None:
        try:
            if self._files.changed():
                self._latest = self._read()
                _log.info("certificates reloaded")
        except (ConfigurationError, OSError) as error:
            # ssl.SSLError is an OSError.
            _log.error("certificates not reloaded; the old ones stay", error=str(error))
        connection.context = self._latest

    def _read(self) -> ssl.SSLContext:
        self._files.configuration()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self._files.certificate, self._files.key)
        if self._files.client_authority is not None:
            context.load_verify_locations(self._files.client_authority)
            context.verify_mode = ssl.CERT_REQUIRED
        return context
