"""The server's certificate: checked before it is used, and read again when its files change."""

import ssl
import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import grpc
import structlog
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

from server.config import Settings
from server.errors import ConfigurationError
from server.transport.files import Stamp, read_file, stamp_of

__all__ = ["Identity", "TlsFiles", "configured_tls", "server_credentials"]

MAX_FILE_BYTES = 1024 * 1024
WARN_BEFORE_EXPIRY = timedelta(days=14)
CERTIFICATE, KEY, AUTHORITY = "--tls-certificate", "--tls-key", "--tls-client-authority"
# OpenSSL knows more than gRPC's library, which would only say that it can't listen. Servers of
# gRPC also take Ed25519 and P-521, but its clients don't: no call would ever come through.
_KEYS = (rsa.RSAPublicKey, ec.EllipticCurvePublicKey)
_CURVES = (ec.SECP256R1, ec.SECP384R1)

_log = structlog.get_logger("rerank.tls")


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate with its key, which belong together, and who may connect; all PEM."""

    certificate: bytes
    key: bytes
    client_authority: bytes | None
    """Only clients with a certificate of this authority are let in; None lets all in."""
    valid_until: datetime


class TlsFiles:
    """The files of the TLS options, and the latest identity in them that could be used.

    A new identity that can't be used, or has expired while the old one has not, changes
    nothing: the log says why, once. For any thread.
    """

    def __init__(self, certificate: Path, key: Path, client_authority: Path | None = None) -> None:
        """Read and check the files.

        Raises:
            ConfigurationError: one can't be read or used, or the certificate has expired; names the option.
        """
        self.certificate = certificate
        self.key = key
        self.client_authority = client_authority
        self._lock = threading.Lock()
        self._said = ""
        self._stamps = self._current_stamps()
        self._identity = self._read()
        if _expired(self._identity):
            raise ConfigurationError(
                f"{CERTIFICATE} {certificate}: has expired on {_date(self._identity)}; renew it"
            )

    def identity(self) -> Identity:
        """What new connections are to see; the same object as long as nothing changes."""
        with self._lock:
            try:
                stamps = self._current_stamps()
                if stamps != self._stamps:
                    # Also when they are wrong: what is wrong with them is said once.
                    self._stamps = stamps
                    self._take(self._read())
            except ConfigurationError as error:
                self._say_once(str(error))
            return self._identity

    def warn_of_expiry(self) -> None:
        """Log how long the certificate is still valid when that is not long; to be called every day."""
        identity = self.identity()
        if _expired(identity):
            _log.error("the certificate has expired; renew it", expired=_date(identity))
        elif identity.valid_until - datetime.now(UTC) < WARN_BEFORE_EXPIRY:
            _log.warning("the certificate is about to expire; renew it", valid_until=_date(identity))

    def _take(self, new: Identity) -> None:
        if _expired(new) and not _expired(self._identity):
            raise ConfigurationError(f"{CERTIFICATE} {self.certificate}: has expired on {_date(new)}")
        self._identity = new
        self._said = ""
        _log.info("certificates reloaded", valid_until=_date(new))

    def _say_once(self, problem: str) -> None:
        if problem != self._said:
            self._said = problem
            _log.error("certificates not reloaded; the old ones stay", error=problem)

    def _current_stamps(self) -> tuple[Stamp, ...]:
        stamps = [stamp_of(self.certificate, CERTIFICATE), stamp_of(self.key, KEY)]
        if self.client_authority is not None:
            stamps.append(stamp_of(self.client_authority, AUTHORITY))
        return tuple(stamps)

    def _read(self) -> Identity:
        certificate = _read(self.certificate, CERTIFICATE)
        key = _read(self.key, KEY)
        chain = _certificates(certificate, f"{CERTIFICATE} {self.certificate}")
        public_key = _public_key(key, f"{KEY} {self.key}")
        if not isinstance(public_key, _KEYS):
            raise ConfigurationError(f"{KEY} {self.key}: is of a kind that gRPC can't use; take RSA or P-256")
        if isinstance(public_key, ec.EllipticCurvePublicKey) and not isinstance(public_key.curve, _CURVES):
            raise ConfigurationError(
                f"{KEY} {self.key}: is on {public_key.curve.name}, which gRPC can't use; take RSA or P-256"
            )
        if public_key != _key_of(chain[0], f"{CERTIFICATE} {self.certificate}"):
            raise ConfigurationError(
                f"{KEY} {self.key}: does not belong to the first certificate of {self.certificate}"
            )
        authority = None
        if self.client_authority is not None:
            authority = _read(self.client_authority, AUTHORITY)
            _certificates(authority, f"{AUTHORITY} {self.client_authority}")
        try:
            # What OpenSSL refuses although it is well formed, such as keys that are too short.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.certificate, self.key)
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{CERTIFICATE} {self.certificate}: {error}") from None
        return Identity(certificate, key, authority, chain[0].not_valid_after_utc)


def configured_tls(settings: Settings) -> TlsFiles | None:
    """The files of the TLS options; None without TLS. One object serves all ports.

    Raises:
        ConfigurationError: a file is missing or wrong; names the option.
    """
    certificate, key, authority = settings.tls_certificate, settings.tls_key, settings.tls_client_authority
    if not certificate and not key:
        if authority:
            raise ConfigurationError(f"{AUTHORITY}: needs {CERTIFICATE} and {KEY}")
        return None
    if not (certificate and key):
        raise ConfigurationError(f"{CERTIFICATE} and {KEY} go together; give both or none")
    return _shared(certificate, key, authority)


@cache
def _shared(certificate: str, key: str, authority: str) -> TlsFiles:
    # All ports renew together, and what is wrong with a file is said once and not by each of them.
    return TlsFiles(Path(certificate), Path(key), Path(authority) if authority else None)


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Credentials for a gRPC port; each new connection sees the files as they are then."""
    given = files.identity()

    def latest() -> grpc.ServerCertificateConfiguration | None:
        # Called by gRPC for each handshake; None keeps what it has.
        nonlocal given
        if (identity := files.identity()) is given:
            return None
        given = identity
        return _grpc_configuration(identity)

    return grpc.dynamic_ssl_server_credentials(
        _grpc_configuration(given),
        latest,  # type: ignore[arg-type]  # gRPC documents None as "no change"; the stubs don't know
        require_client_authentication=given.client_authority is not None,
    )


def _grpc_configuration(identity: Identity) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(identity.key, identity.certificate)], root_certificates=identity.client_authority
    )


def _read(path: Path, option: str) -> bytes:
    content = read_file(path, option, max_bytes=MAX_FILE_BYTES)
    if not content.strip():
        raise ConfigurationError(f"{option} {path}: is empty")
    return content


def _certificates(pem: bytes, where: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise ConfigurationError(f"{where}: holds no certificate in PEM, or a broken one") from None


def _key_of(certificate: x509.Certificate, where: str) -> PublicKeyTypes:
    try:
        return certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigurationError(f"{where}: its key is of a kind that gRPC can't use") from None


def _public_key(pem: bytes, where: str) -> PublicKeyTypes:
    try:
        return serialization.load_pem_private_key(
            pem, password=None, unsafe_skip_rsa_key_validation=True
        ).public_key()
    except TypeError:
        raise ConfigurationError(f"{where}: is encrypted with a password; write it without one") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigurationError(f"{where}: holds no private key in PEM, or a broken one") from None


def _expired(identity: Identity) -> bool:
    return identity.valid_until <= datetime.now(UTC)


def _date(identity: Identity) -> str:
    return f"{identity.valid_until:%Y-%m-%d %H:%M} UTC"
