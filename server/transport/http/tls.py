"""TLS for HTTP: the same files as gRPC's, read again when they change."""

import ssl

import structlog

from server.config import Settings
from server.transport.tls import Identity, TlsFiles, configured_tls

__all__ = ["http_tls_context"]

_log = structlog.get_logger("rerank.tls")


def http_tls_context(settings: Settings) -> ssl.SSLContext | None:
    """A context whose new connections see the files as they are then; None without TLS.

    Raises:
        ConfigurationError: a file can't be read or used.
    """
    files = configured_tls(settings)
    return None if files is None else _Renewing(files).first


class _Renewing:
    """Swaps the context of each connection that begins for the latest one."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._given = files.identity()
        self.first = _context(files, self._given)
        self._latest = self.first
        # OpenSSL calls it for every handshake, whether or not the client names a host.
        self.first.sni_callback = self._on_hello

    def _on_hello(self, connection: ssl.SSLObject, host: str | None, context: ssl.SSLContext) -> None:
        identity = self._files.identity()
        if identity is not self._given:
            try:
                self._latest = _context(self._files, identity)
                self._given = identity
            except (OSError, TypeError, ValueError) as error:
                # Whatever left here would end the handshake. Python takes a certificate only by its
                # path, and it has just changed once more: the next connection tries again.
                _log.warning("HTTP keeps its certificate for one more connection", error=str(error))
        connection.context = self._latest


def _context(files: TlsFiles, identity: Identity) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files.certificate, files.key)
    if identity.client_authority is not None:
        # Python wants ASCII, and comments between the certificates may be in any language.
        context.load_verify_locations(cadata=identity.client_authority.decode("ascii", "ignore"))
        context.verify_mode = ssl.CERT_REQUIRED
    return context
