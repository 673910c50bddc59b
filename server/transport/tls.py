"""TLS and mutual TLS for the gRPC port, with certificates that are read again when they change."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import structlog

from server.errors import ConfigurationError

__all__ = ["TlsFiles", "server_credentials"]

_log = structlog.get_logger("rerank.tls")


@dataclass(slots=True)
class TlsFiles:
    """PEM files of the server's identity, and of the authority that signs its clients."""

    certificate: Path
    key: Path
    client_authority: Path | None = None
    """Only clients with a certificate of this authority are let in."""
    _stamps: tuple[tuple[int, int], ...] = field(default=(), init=False)

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """Read the files.

        Raises:
            ConfigurationError: one can't be read; the message names the option.
        """
        self._stamps = self._current_stamps()
        roots = None
        if self.client_authority is not None:
            roots = _read(self.client_authority, "--tls-client-authority")
        pair = (_read(self.key, "--tls-key"), _read(self.certificate, "--tls-certificate"))
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=roots)

    def changed(self) -> bool:
        """Whether a file is newer than what was read last."""
        return self._current_stamps() != self._stamps

    def _current_stamps(self) -> tuple[tuple[int, int], ...]:
        stamps = []
        for path in (self.certificate, self.key, self.client_authority):
            if path is not None:
                try:
                    status = os.stat(path)
                except OSError as error:
                    raise ConfigurationError(f"TLS file {path}: {error.strerror}") from None
                stamps.append((status.st_mtime_ns, status.st_ino))
        return tuple(stamps)


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Credentials for a port; each new connection sees the files as they are then.

    Raises:
        ConfigurationError: a file can't be read, or key and certificate don't belong together.
    """

    def latest() -> grpc.ServerCertificateConfiguration | None:
        # Called by gRPC for each handshake; None keeps what it has.
        try:
            if not files.changed():
                return None
            configuration = files.configuration()
        except ConfigurationError as error:
            _log.error("certificates not reloaded; the old ones stay", error=str(error))
            return None
        _log.info("certificates reloaded")
        return configuration

    return grpc.dynamic_ssl_server_credentials(
        files.configuration(),
        latest,  # type: ignore[arg-type]  # gRPC documents None as "no change"; the stubs don't know
        require_client_authentication=files.client_authority is not None,
    )


def _read(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{option} {path}: {error.strerror}") from None
