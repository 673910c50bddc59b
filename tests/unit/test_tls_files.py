"""The server's own certificate: what is refused, what is said, and what a renewal may change."""

import os
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import NameOID
from structlog.testing import capture_logs

from deploy.local import certificate as making
from deploy.local.certificate import CertificateFiles, make_certificate
from server.errors import ConfigurationError
from server.transport.tls import TlsFiles, server_credentials

EXPIRED_DAYS = -0.01
"""Valid since an hour ago, until a quarter of an hour ago."""


def certificate_for(folder: Path, days: float) -> CertificateFiles:
    """A certificate that is valid for as long as the test wants."""
    usual = making.VALID_DAYS
    making.VALID_DAYS = days  # type: ignore[assignment]
    try:
        return make_certificate(folder)
    finally:
        making.VALID_DAYS = usual


def tls_files(files: CertificateFiles, *, authority: bool = True) -> TlsFiles:
    return TlsFiles(files.certificate, files.key, files.root if authority else None)


def encrypt(key: Path) -> None:
    loaded = serialization.load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(
        loaded.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def huge(path: Path) -> None:
    os.truncate(path, 10_000_000_000)


def write_key(path: Path, key: CertificateIssuerPrivateKeyTypes) -> None:
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


def unknown_key(path: Path) -> None:
    """Name a curve that does not exist instead of P-256."""
    p_256, none = (bytes.fromhex(f"06082a8648ce3d0301{last}") for last in ("07", "63"))
    found = x509.load_pem_x509_certificate(path.read_bytes()).public_bytes(serialization.Encoding.DER)
    assert p_256 in found
    path.write_text(ssl.DER_cert_to_PEM_cert(found.replace(p_256, none)))


def self_signed(folder: Path, key: CertificateIssuerPrivateKeyTypes) -> CertificateFiles:
    now = datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())
    )
    files = CertificateFiles(folder / "server.crt", folder / "server.crt", folder / "server.key")
    files.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    write_key(files.key, key)
    return files


WRONG: list[tuple[str, Callable[[Path], object], str]] = [
    ("certificate", lambda path: path.write_text("not PEM"), "holds no certificate in PEM"),
    ("certificate", lambda path: path.write_text(""), "is empty"),
    ("key", lambda path: path.write_text("not PEM"), "holds no private key in PEM"),
    ("key", lambda path: path.write_text(""), "is empty"),
    ("key", lambda path: write_key(path, ec.generate_private_key(ec.SECP256K1())), "is on secp256k1"),
    ("key", lambda path: write_key(path, ec.generate_private_key(ec.SECP521R1())), "is on secp521r1"),
    ("key", lambda path: write_key(path, ed25519.Ed25519PrivateKey.generate()), "that gRPC can't use"),
    ("certificate", unknown_key, "its key is of a kind that gRPC can't use"),
    ("key", encrypt, "is encrypted with a password"),
    ("root", lambda path: path.write_text("not PEM"), "holds no certificate in PEM"),
    ("certificate", a_pipe, "is not a regular file"),
    ("key", a_device, "is not a regular file"),
    ("root", a_folder, "Is a directory"),
    ("root", huge, "is larger than"),
    ("key", lambda path: path.unlink(), "No such file"),
]
OPTIONS = {"certificate": "--tls-certificate", "key": "--tls-key", "root": "--tls-client-authority"}


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("which", "spoil", "said"), WRONG)
def test_a_wrong_file_is_named_with_what_is_wrong(
    tmp_path: Path, which: str, spoil: Callable[[Path], object], said: str
) -> None:
    """One line with the option, the file and the reason; nothing is waited for."""
    files = make_certificate(tmp_path)
    path: Path = getattr(files, which)
    spoil(path)
    with pytest.raises(ConfigurationError) as refused:
        tls_files(files)
    assert str(refused.value).startswith(f"{OPTIONS[which]} {path}: ")
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "key",
    [
        lambda: rsa.generate_private_key(65537, 2048),
        lambda: ec.generate_private_key(ec.SECP256R1()),
        lambda: ec.generate_private_key(ec.SECP384R1()),
        lambda: ec.generate_private_key(ec.SECP521R1()),
        ed25519.Ed25519PrivateKey.generate,
    ],
    ids=["rsa", "p-256", "p-384", "p-521", "ed25519"],
)
def test_a_key_that_is_accepted_lets_clients_connect(
    tmp_path: Path, key: Callable[[], CertificateIssuerPrivateKeyTypes]
) -> None:
    """Clients of gRPC, which know fewer kinds than its servers; the others are refused at start."""
    files = self_signed(tmp_path, key())
    try:
        credentials = server_credentials(tls_files(files, authority=False))
    except ConfigurationError as error:
        assert "take RSA or P-256" in str(error)
        return
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_secure_port("localhost:0", credentials)
    server.start()
    trusting = grpc.ssl_channel_credentials(files.root.read_bytes())
    with grpc.secure_channel(f"localhost:{port}", trusting) as channel:
        grpc.channel_ready_future(channel).result(timeout=10)
    server.stop(None)


def test_a_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    """The line names both files."""
    files, other = make_certificate(tmp_path / "one"), make_certificate(tmp_path / "other")
    with pytest.raises(ConfigurationError, match="does not belong to") as refused:
        TlsFiles(files.certificate, other.key)
    assert str(other.key) in str(refused.value)
    assert str(files.certificate) in str(refused.value)


def test_an_expired_certificate_is_refused_at_start(tmp_path: Path) -> None:
    """With the date on which it expired."""
    with pytest.raises(ConfigurationError, match=r"--tls-certificate .*: has expired on \d{4}-\d\d-\d\d"):
        tls_files(certificate_for(tmp_path, EXPIRED_DAYS))


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("which", "spoil", "said"), WRONG)
def test_a_wrong_renewal_changes_nothing_and_is_said_once(
    tmp_path: Path, which: str, spoil: Callable[[Path], object], said: str
) -> None:
    """The old certificate stays, and a good one is taken later."""
    files = make_certificate(tmp_path)
    tls = tls_files(files)
    before = tls.identity()
    path: Path = getattr(files, which)
    spoil(path)
    with capture_logs() as lines:
        assert all(tls.identity() is before for _ in range(3))
    assert [(line["log_level"], said in line["error"]) for line in lines] == [("error", True)]
    path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
    make_certificate(tmp_path)
    with capture_logs() as lines:
        assert tls.identity() is not before
    assert [line["event"] for line in lines] == ["certificates reloaded"]


def test_a_renewal_with_another_key_changes_nothing(tmp_path: Path) -> None:
    """Half a renewal: the certificate has been replaced and its key has not."""
    files, other = make_certificate(tmp_path / "one"), make_certificate(tmp_path / "other")
    tls = tls_files(files)
    before = tls.identity()
    os.replace(other.certificate, files.certificate)
    with capture_logs() as lines:
        assert tls.identity() is before
    assert "does not belong to" in lines[0]["error"]
    os.replace(other.key, files.key)
    assert tls.identity() is not before


def test_a_renewal_by_an_expired_certificate_changes_nothing(tmp_path: Path) -> None:
    """As long as the old one is valid."""
    files = make_certificate(tmp_path / "one")
    tls = tls_files(files)
    before = tls.identity()
    old = certificate_for(tmp_path / "old", EXPIRED_DAYS)
    os.replace(old.key, files.key)
    os.replace(old.certificate, files.certificate)
    with capture_logs() as lines:
        assert tls.identity() is before
    assert "has expired on" in lines[0]["error"]


@pytest.mark.parametrize(("days", "level"), [(13.5, "warning"), (0.5, "warning"), (15, None)])
def test_the_end_is_announced_two_weeks_before(tmp_path: Path, days: float, level: str | None) -> None:
    """Each time that it is asked for, with the date."""
    tls = tls_files(certificate_for(tmp_path, days))
    with capture_logs() as lines:
        tls.warn_of_expiry()
        tls.warn_of_expiry()
    assert [line["log_level"] for line in lines] == ([level] * 2 if level else [])
    until = f"{tls.identity().valid_until:%Y-%m-%d}"
    assert all(line["valid_until"].startswith(until) for line in lines)


def test_an_expired_certificate_is_an_error_every_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that expired while the server ran."""
    files = certificate_for(tmp_path, EXPIRED_DAYS)
    monkeypatch.setattr("server.transport.tls._expired", lambda identity: False)
    tls = tls_files(files, authority=False)
    monkeypatch.undo()
    with capture_logs() as lines:
        tls.warn_of_expiry()
    assert [line["log_level"] for line in lines] == ["error"]
