"""TLS, API keys, and advice about connections that fail: with real certificates and sockets."""

import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from rerank import (
    AsyncRerankClient,
    AuthenticationError,
    ProtocolError,
    RerankClient,
    RerankError,
    RetryPolicy,
    TLSConfig,
    UnavailableError,
)
from rerank._tls import is_loopback

from deploy.local.certificate import CertificateFiles, make_certificate
from tests.sdk.scoring_server import Fail, ScoringServer
from tests.sdk.twins import Connect, Twin

ONCE = RetryPolicy(max_attempts=1)


@pytest.mark.parametrize(
    "target",
    [
        "localhost",
        "localhost:50051",
        "LOCALHOST:1",
        "127.0.0.1:1",
        "127.8.8.8:1",
        "[::1]:1",
        "::1",
        "dns:///localhost:1",
        "dns:localhost:1",
        "dns://8.8.8.8/localhost:1",
        "ipv4:127.0.0.1:1,127.0.0.2:2",
        "ipv6:[::1]:1",
        "unix:/run/rerank.sock",
        "unix:///run/rerank.sock",
        "unix-abstract:rerank",
    ],
)
def test_loopback_needs_no_tls(target: str) -> None:
    """Targets that stay on this machine are plain text by default."""
    assert is_loopback(target)


@pytest.mark.parametrize(
    "target",
    [
        "lb:443",
        "lb",
        "localhost.example.org:443",
        "127.0.0.1.example.org:443",
        "128.0.0.1:443",
        "0.0.0.0:443",
        "[2001:db8::1]:443",
        "dns:///lb:443",
        "dns://127.0.0.1/lb:443",
        "ipv4:127.0.0.1:1,10.0.0.1:2",
        "ipv6:[::1]:1,[2001:db8::1]:1",
        "xds:///lb",
    ],
)
def test_everything_else_is_tls(target: str) -> None:
    """Whatever may leave this machine is encrypted unless tls=False says otherwise."""
    assert not is_loopback(target)
    with RerankClient(target) as client:
        assert "TLS" in repr(client)
    with RerankClient(target, tls=False) as client:
        assert "plain text" in repr(client)


@pytest.mark.parametrize(
    "target", ["https://lb:443", "http://lb", "grpc://lb:443/", "", " lb:443", "lb:443\n"]
)
@pytest.mark.parametrize("kind", [RerankClient, AsyncRerankClient])
def test_a_target_is_no_url(kind: type[RerankClient], target: str) -> None:
    """A URL is refused with the target that was probably meant."""
    with pytest.raises(ValueError, match="host:port"):
        kind(target)


def test_a_known_root_is_enough(connect: Connect, certificate: CertificateFiles) -> None:
    """With the root that signed the server's certificate, calls are encrypted and answered."""
    with tls_server(certificate) as server:
        by_path = connect(server.target, tls=TLSConfig(root_certificates=certificate.root))
        by_bytes = connect(server.target, tls=TLSConfig(root_certificates=certificate.root.read_bytes()))
        assert len(by_path.rerank("query", ["a"])) == len(by_bytes.rerank("query", ["a"])) == 1


def test_the_name_in_the_certificate_may_differ(connect: Connect, tmp_path: Path) -> None:
    """server_name says which name to expect when it isn't the one that was dialled."""
    certificate = make_certificate(tmp_path, ["rerank.internal"])
    with tls_server(certificate) as server:
        tls = TLSConfig(root_certificates=certificate.root, server_name="rerank.internal")
        assert len(connect(server.target, tls=tls).rerank("query", ["a"])) == 1
        stranger = connect(server.target, tls=TLSConfig(root_certificates=certificate.root), retry=ONCE)
        with pytest.raises(UnavailableError, match="server_name"):
            stranger.rerank("query", ["a"])


def test_clients_can_prove_who_they_are(
    connect: Connect, certificate: CertificateFiles, tmp_path: Path
) -> None:
    """Mutual TLS works with a client certificate, and its absence is explained."""
    client_certificate, client_key = make_client_certificate(tmp_path)
    with tls_server(certificate, clients=client_certificate.read_bytes()) as server:
        tls = TLSConfig(
            root_certificates=certificate.root,
            client_certificate=client_certificate,
            client_key=client_key,
        )
        assert len(connect(server.target, tls=tls).rerank("query", ["a"])) == 1
        unknown = connect(server.target, tls=TLSConfig(root_certificates=certificate.root), retry=ONCE)
        with pytest.raises(UnavailableError, match="certificate"):
            unknown.rerank("query", ["a"])


def test_an_unknown_root_is_explained(connect: Connect, certificate: CertificateFiles) -> None:
    """A certificate of an unknown authority is refused, and the advice names root_certificates."""
    with tls_server(certificate) as server, pytest.raises(UnavailableError, match="root_certificates="):
        connect(server.target, tls=True, retry=ONCE).rerank("query", ["a"])


def test_tls_to_a_plain_text_server_is_explained(connect: Connect, server: ScoringServer) -> None:
    """A client that speaks TLS to a server that doesn't is told about tls=False."""
    with pytest.raises(UnavailableError, match="pass tls=False"):
        connect(server.target, tls=True, retry=ONCE).rerank("query", ["a"])


def test_plain_text_to_a_tls_server_is_explained(connect: Connect, certificate: CertificateFiles) -> None:
    """A client that speaks plain text to a TLS server is told about tls=True."""
    with tls_server(certificate) as server, pytest.raises(UnavailableError, match="pass tls=True"):
        connect(server.target, retry=ONCE).rerank("query", ["a"])


def test_tls_without_http2_is_explained(connect: Connect, certificate: CertificateFiles) -> None:
    """A TLS port that doesn't offer HTTP/2, as Nginx without `http2 on`, is recognised."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.key)
    tls = TLSConfig(root_certificates=certificate.root)
    with raw_server(context) as port, pytest.raises(UnavailableError, match="http2 on"):
        connect(f"127.0.0.1:{port}", tls=tls, retry=ONCE).rerank("query", ["a"])


def test_http1_in_plain_text_is_explained(connect: Connect) -> None:
    """A port that answers HTTP/1 is recognised."""
    with raw_server() as port, pytest.raises(RerankError, match=r"check the port|tls=True"):
        connect(f"127.0.0.1:{port}", retry=ONCE).rerank("query", ["a"])


def test_a_connection_that_breaks_later_is_no_matter_of_tls(connect: Connect, server: ScoringServer) -> None:
    """A server that dies under a call is not taken for one that speaks another protocol."""
    server.script = [Fail(grpc.StatusCode.UNAVAILABLE, "Socket closed")]
    with pytest.raises(UnavailableError) as caught:
        connect(server.target, retry=ONCE).rerank("query", ["a"])
    assert "tls" not in caught.value.message


def test_nobody_there_is_explained(connect: Connect) -> None:
    """A refused connection says that nothing listens."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        with pytest.raises(UnavailableError, match="nothing listens there") as caught:
            connect(f"127.0.0.1:{port}").rerank("query", ["a"])
    assert f"127.0.0.1:{port}" in str(caught.value)


def test_a_missing_socket_is_explained(connect: Connect, tmp_path: Path) -> None:
    """A path without a socket says so."""
    with pytest.raises(UnavailableError, match="the socket does not exist"):
        connect(f"unix:{tmp_path}/none.sock", retry=ONCE).rerank("query", ["a"])


def test_a_name_that_does_not_resolve_is_explained(connect: Connect) -> None:
    """A host that isn't in the DNS is named."""
    with pytest.raises(UnavailableError, match="does not resolve"):
        connect("no-such-host.invalid:443", retry=ONCE).rerank("query", ["a"])


def test_a_server_of_something_else_is_explained(connect: Connect) -> None:
    """A gRPC server that doesn't know the service is recognised."""
    with ScoringServer() as server:
        server.script = [Fail(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")]
        with pytest.raises(ProtocolError, match="address of a Rerank server"):
            connect(server.target).rerank("query", ["a"])


def test_unix_sockets_work(connect: Connect, tmp_path: Path) -> None:
    """A target can be a Unix socket."""
    address = f"unix:{tmp_path}/rerank.sock"
    with ScoringServer(address=address):
        assert len(connect(address).rerank("query", ["a"])) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"client_certificate": b"-----BEGIN "}, "client_key"),
        ({"client_key": b"-----BEGIN "}, "client_certificate"),
    ],
)
def test_half_of_a_client_certificate_is_refused(arguments: dict[str, bytes], message: str) -> None:
    """Mutual TLS needs both halves, and the missing one is named."""
    with pytest.raises(ValueError, match=f"^{message}:"):
        TLSConfig(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [RerankClient, AsyncRerankClient])
def test_certificates_are_read_when_the_client_is_made(kind: type[RerankClient], tmp_path: Path) -> None:
    """A wrong path or a file that isn't PEM fails in the constructor, naming the argument."""
    wrong = tmp_path / "wrong.pem"
    wrong.write_bytes(b"not PEM")
    with pytest.raises(FileNotFoundError):
        kind("lb:443", tls=TLSConfig(root_certificates=tmp_path / "none.pem"))
    with pytest.raises(ValueError, match=r"root_certificates: .*wrong.pem holds no PEM"):
        kind("lb:443", tls=TLSConfig(root_certificates=wrong))
    with pytest.raises(ValueError, match="pass it as bytes"):
        kind("lb:443", tls=TLSConfig(root_certificates="-----BEGIN CERTIFICATE-----"))


def test_keys_of_certificates_are_not_shown() -> None:
    """The private key is in no repr."""
    config = TLSConfig(client_certificate=b"certificate", client_key=b"very secret")
    assert "very secret" not in repr(config)


def test_the_api_key_travels_as_a_bearer_token(connect: Connect, server: ScoringServer) -> None:
    """An API key is sent with every kind of call."""
    connect(server.target, api_key="secret-1").rerank("query", ["a"])
    assert server.seen[0].metadata["authorization"] == "Bearer secret-1"


def test_no_api_key_sends_no_header(client: Twin, server: ScoringServer) -> None:
    """Without an API key there is no authorization header."""
    client.rerank("query", ["a"])
    assert "authorization" not in server.seen[0].metadata


def test_a_callable_api_key_is_asked_before_each_call(connect: Connect, server: ScoringServer) -> None:
    """Keys can be renewed while the client lives."""
    keys = iter(["first", "second"])
    client = connect(server.target, api_key=lambda: next(keys))
    client.rerank("query", ["a"])
    client.rerank("query", ["a"])
    assert [seen.metadata["authorization"] for seen in server.seen] == ["Bearer first", "Bearer second"]


async def test_an_api_key_may_be_awaited(server: ScoringServer) -> None:
    """The asynchronous client also takes a coroutine function."""

    async def renew() -> str:
        return "awaited"

    async with AsyncRerankClient(server.target, api_key=renew) as client:
        await client.rerank("query", ["a"])
    assert server.seen[0].metadata["authorization"] == "Bearer awaited"


@pytest.mark.parametrize("key", ["", "secret\n", " secret ", "ünïcode", "a\0b"])
def test_a_key_that_cannot_travel_is_refused_without_showing_it(connect: Connect, key: str) -> None:
    """A key that no header can carry fails in the constructor, and isn't in the message."""
    with pytest.raises(ValueError, match="api_key") as caught:
        connect("localhost:1", api_key=key)
    assert not key.strip() or key.strip() not in str(caught.value)
    renewed = connect("localhost:1", api_key=lambda: key)
    with pytest.raises(ValueError, match="api_key"):
        renewed.rerank("query", ["a"])


def test_the_api_key_is_never_shown(connect: Connect, server: ScoringServer) -> None:
    """No repr and no error holds the key."""
    client: Any = connect(server.target, api_key="very-secret")
    assert "very-secret" not in f"{client.client!r} {client.client} {client.client._settings!r}"
    server.script = [Fail(grpc.StatusCode.UNAUTHENTICATED)]
    with pytest.raises(AuthenticationError) as caught:
        client.rerank("query", ["a"])
    assert "very-secret" not in f"{caught.value!r} {caught.value} {vars(caught.value)}"


@contextmanager
def tls_server(certificate: CertificateFiles, clients: bytes | None = None) -> Iterator[ScoringServer]:
    credentials = grpc.ssl_server_credentials(
        [(certificate.key.read_bytes(), certificate.certificate.read_bytes())],
        root_certificates=clients,
        require_client_auth=clients is not None,
    )
    with ScoringServer(credentials=credentials) as server:
        yield server


@contextmanager
def raw_server(context: ssl.SSLContext | None = None) -> Iterator[int]:
    """A server that answers every connection in HTTP/1, perhaps over TLS without HTTP/2."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            connection: socket.socket = self.request
            try:
                if context:
                    connection = context.wrap_socket(connection, server_side=True)
                connection.recv(1)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
                connection.recv(65536)
            except OSError:
                pass

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def make_client_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate that vouches for itself, as a server that knows its clients would list it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a client")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate_path, key_path = folder / "client.crt", folder / "client.key"
    certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return certificate_path, key_path
